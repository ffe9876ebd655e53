# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Types and symbols from the core itself
--------------------------------------

What drgn lacks without debuginfo is in the kernel's own memory: VMCOREINFO says
where kallsyms is, kallsyms says where BTF is. :func:`install()` offers both to
drgn as a type, an object and a symbol finder, behind everything else.

drgn's helpers read :exc:`LookupError` as "this kernel was built without it", so
a finder that merely *cannot tell* must not let one through. What this module
cannot answer raises :exc:`~drgn_hvo.errors.UnavailableError` instead. Where the
kernel's debuginfo is loaded, that is the authority, and these finders are silent.

Importing this module is cheap: what reads the formats is imported when a finder
is first asked.
"""

from __future__ import annotations

from collections.abc import Container
from contextlib import suppress
from functools import partial, wraps
import logging
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Generic,
    Optional,
    TypeVar,
    Union,
    cast,
)

from drgn import (
    FaultError,
    FindObjectFlags,
    ModuleFileStatus,
    Object,
    PlatformFlags,
    Program,
    Symbol,
    SymbolBinding,
    SymbolKind,
    Type,
    TypeKind,
    TypeKindSet,
    TypeMember,
)

from drgn_hvo.errors import DetectionError, FormatError, HvoError, UnavailableError
from drgn_hvo.kernel.translation import add_memory_segments
from drgn_hvo.kernel.unread import RECURSION

if TYPE_CHECKING:
    from drgn_hvo.formats.byteorder import ByteOrder
    from drgn_hvo.formats.kallsyms import Kallsyms, KernelSymbol
    from drgn_hvo.formats.vmcoreinfo import Vmcoreinfo
    from drgn_hvo.kernel.btf_types import BtfTypes
    from drgn_hvo.kernel.image_search import KernelImage
    from drgn_hvo.kernel.translation import Translation
    from drgn_hvo.kernel.variables import LengthSource, Variable

__all__ = (
    "FINDER_NAME",
    "CoreSources",
    "are_finders_enabled",
    "core_sources",
    "has_debuginfo",
    "install",
    "program_byteorder",
)

#: The name under which the finders are registered.
FINDER_NAME = "hvo"

_CACHE_KEY = "drgn_hvo.sources"

# The BTF of a distribution kernel has 2 to 7 MiB, of allyesconfig some 30.
# The smallest page that a dump can leave out.
_PAGE = 4096

_MAX_BTF_SIZE = 256 << 20

# MAX_NUMNODES is at most 1024, and no array that we know of is longer.
_MAX_LENGTH = 1 << 16

# drgn's own, so that its settings hold.
_logger = logging.getLogger("drgn")

T = TypeVar("T")


F = TypeVar("F", bound=Callable[..., Any])


def _silent_while_translating(find: F) -> F:
    """A finder that has no answer while drgn sets up the translation of addresses."""

    @wraps(find)
    def finder(*args: Any) -> Any:
        try:
            return find(*args)
        except UnavailableError as e:
            if RECURSION in str(e):
                return None
            raise

    return cast(F, finder)


class _Lazy(Generic[T]):
    """A source that is read once; if it cannot be, the reason is kept."""

    def __init__(self, sources: CoreSources, load: Callable[[], T]) -> None:
        self._sources = sources
        self._load = load
        self._value: Optional[T] = None
        self._reason: Optional[str] = None

    @property
    def is_loaded(self) -> bool:
        """Whether it was read, or could not be."""
        return self._value is not None or self._reason is not None

    def __call__(self) -> T:
        """:raises UnavailableError: with the same reason each time."""
        if self._reason is not None:
            raise UnavailableError(self._reason)
        if self._value is None:
            was_busy, self._sources.busy = self._sources.busy, True
            try:
                self._value = self._load()
            except (HvoError, FaultError) as e:
                if RECURSION not in str(e):
                    self._reason = str(e)
                raise UnavailableError(str(e)) from None
            finally:
                self._sources.busy = was_busy
        return self._value


def _cut_names() -> Container[str]:
    from drgn_hvo.kernel.kept_names import NAMES

    return NAMES


def _cut_types() -> Container[str]:
    from drgn_hvo.kernel.kept_names import TYPES

    return TYPES


class CoreSources:
    """
    VMCOREINFO, kallsyms and BTF of one program, each read when first needed.

    Calling one of :attr:`vmcoreinfo`, :attr:`kallsyms`, :attr:`types` and
    :attr:`translation` gives it or raises
    :exc:`~drgn_hvo.errors.UnavailableError` with the reason.
    """

    def __init__(self, prog: Program) -> None:
        self.prog = prog
        # Reading a source makes drgn look up base types such as char, which asks
        # our finders again: drgn's defaults are right for those.
        self.busy = False
        self.vmcoreinfo: _Lazy[Vmcoreinfo] = _Lazy(self, self._load_vmcoreinfo)
        #: The kernel image, read if something has to be looked for in it.
        self.image: _Lazy[KernelImage] = _Lazy(self, self._load_image)
        #: Addresses of the tables of kallsyms that VMCOREINFO lacks, by name.
        self.found_tables: _Lazy[dict[str, int]] = _Lazy(self, self._load_tables)
        self.kallsyms: _Lazy[Kallsyms] = _Lazy(self, self._load_kallsyms)
        self.types: _Lazy[BtfTypes] = _Lazy(self, self._load_types)
        self.translation: _Lazy[Translation] = _Lazy(self, self._load_translation)
        # Structures that somebody was given before all types were read.
        self._early: dict[str, Optional[Type]] = {}

    @property
    def byteorder(self) -> ByteOrder:
        """As :func:`program_byteorder()`."""
        return program_byteorder(self.prog)

    def _load_vmcoreinfo(self) -> Vmcoreinfo:
        from drgn_hvo.formats.vmcoreinfo import Vmcoreinfo

        try:
            data = self.prog["VMCOREINFO"].string_()
        except KeyError:
            raise UnavailableError("this target has no VMCOREINFO") from None
        return Vmcoreinfo(data)

    def _load_translation(self) -> Translation:
        from drgn_hvo.formats.architectures import ARCHITECTURES
        from drgn_hvo.kernel.translation import Translation, architecture_name

        entry = ARCHITECTURES.get(architecture_name(self.prog) or "")
        return Translation(self.prog, self.vmcoreinfo(), entry)

    def _load_kallsyms(self) -> Kallsyms:
        from drgn_hvo.formats.kallsyms import Kallsyms, KallsymsTables

        noted = self.vmcoreinfo().addresses()
        known = {**noted, **self.found_tables()}
        try:
            tables = KallsymsTables.read(self.prog.read, known, self.byteorder)
        except FaultError as e:
            raise UnavailableError(f"kallsyms is not in this dump: {e}") from None
        return Kallsyms(tables, noted)

    def _load_image(self) -> KernelImage:
        from drgn_hvo.kernel.image_search import read_image

        return read_image(self.prog.read, self.vmcoreinfo().addresses())

    def _load_tables(self) -> dict[str, int]:
        from drgn_hvo.formats.kallsyms_search import TABLES
        from drgn_hvo.kernel.image_search import find_tables

        known = self.vmcoreinfo().addresses()
        tables = any(f"kallsyms_{kind}" in known for kind in ("offsets", "addresses"))
        if tables and all(name in known for name in TABLES):
            return {}
        known = {n: at for n, at in known.items() if not n.startswith("kallsyms_")}
        return find_tables(self.image(), known, self.byteorder)

    def _load_types(self) -> BtfTypes:
        from drgn_hvo.formats.btf import Btf
        from drgn_hvo.kernel.btf_types import BtfTypes

        data = self._read_btf(self.address)
        types = BtfTypes(self.prog, Btf(data))
        for name, known in self._early.items():
            if known is not None:
                types.adopt(name, known)
        _logger.warning(
            "no debuginfo of this kernel: drgn-hvo takes types from its BTF and "
            "symbols from its kallsyms"
        )
        return types

    def _read_btf(self, address: Callable[[str], Optional[int]]) -> bytes:
        try:
            start, stop = address("__start_BTF"), address("__stop_BTF")
        except UnavailableError:
            # Without symbols, it can only be looked for.
            from drgn_hvo.kernel.image_search import find_types

            return find_types(self.image())
        if start is None or stop is None:
            raise UnavailableError(
                "this kernel was built without BTF (CONFIG_DEBUG_INFO_BTF)"
            )
        if not start < stop <= start + _MAX_BTF_SIZE:
            raise FormatError(f"BTF is damaged: it spans {start:#x} to {stop:#x}")
        try:
            data = self.prog.read(start, stop - start)
        except FaultError as e:
            raise UnavailableError(f"BTF is not in this dump: {e}") from None
        # No page of BTF is all zeros. Of types without names, any could be another.
        for at in range(-start % _PAGE, len(data) - _PAGE + 1, _PAGE):
            if not any(data[at : at + 16]) and not any(data[at : at + _PAGE]):
                raise UnavailableError(
                    f"BTF is not in this dump: at {start + at:#x} it reads as zeros"
                )
        return data

    def early_struct(self, name: str) -> Optional[Type]:
        """
        A structure, without the time that all types take if nobody has asked for any.

        :return: ``None`` if the kernel has none of that name.
        :raises UnavailableError: if that cannot be told.
        """
        if name not in self._early and not self.types.is_loaded:
            # All of BTF may tell what a short search does not.
            with suppress(HvoError, FaultError):
                self._early[name] = self._find_early(name)
        if name in self._early:
            return self._early[name]
        return self.types().find(TypeKindSet((TypeKind.STRUCT,)), name)

    def _find_early(self, name: str) -> Optional[Type]:
        from drgn_hvo.formats.btf_search import find_struct
        from drgn_hvo.formats.kallsyms_lookup import KallsymsLookup

        known = self.vmcoreinfo().addresses()
        symbols = KallsymsLookup(self.prog.read, known, self.byteorder)
        found = find_struct(self._read_btf(symbols.address), name)
        if found is None:
            return None
        members = [
            TypeMember(partial(self._member_type, member), member[0] or None, member[2])
            for member in found.members
        ]
        return self.prog.struct_type(name, found.size, members)

    def _member_type(self, member: tuple[str, int, int, int]) -> Union[Object, Type]:
        from drgn_hvo.formats.btf import BtfMember

        return self.types().member_type(BtfMember(*member))

    @property
    def extract_kind(self) -> Optional[str]:
        """``"full"`` or ``"small"`` if this is what ``drgn-hvo extract`` wrote."""
        from drgn_hvo.formats.vmcoreinfo import EXTRACT_KEY

        return self.vmcoreinfo().get(EXTRACT_KEY)

    def check_not_cut(self, name: str, known: Callable[[], Container[str]]) -> None:
        """
        Check that a name that was not found is not in the kernel.

        :param known: Gives the names of which cut tables tell.
        :raises UnavailableError: if it may just have been cut away.
        """
        if self.extract_kind == "small" and name not in known():
            raise UnavailableError(
                f"cannot look up {name}: this is an extract, with a part of the "
                "kernel's symbols and types only (--small)"
            )

    def has_data_symbols(self) -> bool:
        """
        Whether kallsyms lists variables too (``CONFIG_KALLSYMS_ALL``), so that
        one that it lacks does not exist. Every VMCOREINFO names ``init_uts_ns``.
        """
        return bool(self.kallsyms().lookup("init_uts_ns"))

    def address(self, name: str) -> Optional[int]:
        """
        Where a variable or function lies.

        :return: ``None`` if the kernel has none of that name.
        :raises UnavailableError: if that cannot be told.
        """
        try:
            entries = self.kallsyms().lookup(name)
        except UnavailableError as e:
            address = self._vmcoreinfo_address(name)
            if address is None:
                raise UnavailableError(f"cannot look up {name}: {e}") from None
            return address
        if len({entry.address for entry in entries}) > 1:
            raise UnavailableError(f"kallsyms has {len(entries)} symbols named {name}")
        if entries:
            return entries[0].address
        self.check_not_cut(name, _cut_names)
        if not self.has_data_symbols():
            address = self._vmcoreinfo_address(name)
            if address is None:
                raise UnavailableError(
                    f"cannot look up {name}: this kernel's kallsyms lists functions "
                    "only (no CONFIG_KALLSYMS_ALL)"
                )
            return address
        return None

    def _vmcoreinfo_address(self, name: str) -> Optional[int]:
        try:
            return self.vmcoreinfo().address(name)
        except UnavailableError:
            return None


def program_byteorder(prog: Program) -> ByteOrder:
    """The byte order of a program; little endian if it does not say."""
    platform = prog.platform
    if platform is None or platform.flags & PlatformFlags.IS_LITTLE_ENDIAN:
        return "little"
    return "big"


def core_sources(prog: Program) -> CoreSources:
    """The sources of a program; its finders share them."""
    sources: CoreSources = prog.cache.setdefault(_CACHE_KEY, CoreSources(prog))
    return sources


def has_debuginfo(prog: Program) -> bool:
    """Whether the debuginfo of the kernel itself is loaded."""
    try:
        module = prog.main_module()
    except LookupError:
        return False
    return module.debug_file_status == ModuleFileStatus.HAVE


def _is_silent(sources: CoreSources, filename: Optional[str]) -> bool:
    # Neither BTF nor kallsyms knows in which file something is defined.
    return sources.busy or filename is not None or has_debuginfo(sources.prog)


# The kinds that VMCOREINFO and drgn's defaults cannot stand in for.
_NAMED_KINDS = TypeKindSet(
    (
        TypeKind.STRUCT,
        TypeKind.UNION,
        TypeKind.CLASS,
        TypeKind.ENUM,
        TypeKind.TYPEDEF,
    )
)

# drgn has defaults for these.
_DEFAULT_TYPEDEFS = ("size_t", "ptrdiff_t")


def _module_type(sources: CoreSources, kinds: TypeKindSet) -> Optional[Type]:
    """
    ``struct module``. drgn asks for it at the start of each session, to list loaded
    modules and look for their debuginfo: an error would end the session, so this says
    "not found" where it cannot tell, and it must not take the time that all of BTF
    takes.
    """
    if TypeKind.STRUCT not in kinds:
        return None
    try:
        return sources.early_struct("module")
    except UnavailableError:
        return None


def _check_modules_wanted(prog: Program) -> None:
    """
    Let drgn look for the kernel's debuginfo before it lists modules by ours: without,
    that of modules is of no use, and a search for hundreds of them takes time.

    :raises LookupError: as long as drgn wants the kernel's debuginfo.
    """
    try:
        wanted = prog.main_module().wants_debug_file()
    except LookupError:
        # Nobody has asked drgn for debuginfo.
        return
    if wanted:
        raise LookupError(
            "modules are not listed while the kernel's debuginfo is wanted; if there "
            "is none, say so: prog.main_module().debug_file_status = "
            "drgn.ModuleFileStatus.DONT_NEED"
        )


@_silent_while_translating
def _find_type(
    prog: Program, kinds: TypeKindSet, name: str, filename: Optional[str]
) -> Optional[Type]:
    sources = core_sources(prog)
    if _is_silent(sources, filename):
        return None
    if name == "module":
        return _module_type(sources, kinds)
    try:
        types = sources.types()
    except UnavailableError as e:
        if not kinds & _NAMED_KINDS or name in _DEFAULT_TYPEDEFS:
            return None
        raise UnavailableError(f"cannot look up type {name}: {e}") from None
    found = types.find(kinds, name)
    if found is None and kinds & _NAMED_KINDS and name not in _DEFAULT_TYPEDEFS:
        sources.check_not_cut(name, _cut_types)
    return found


@_silent_while_translating
def _find_object(
    prog: Program, name: str, flags: FindObjectFlags, filename: Optional[str]
) -> Optional[Object]:
    sources = core_sources(prog)
    if _is_silent(sources, filename):
        return None
    from drgn_hvo.kernel.variables import VARIABLES

    if flags & FindObjectFlags.VARIABLE:
        if name == "vmemmap":
            return _vmemmap(sources)
        if name == "mem_section":
            return _mem_section(sources)
        if name == "modules":
            _check_modules_wanted(prog)
        if name in VARIABLES:
            return _variable(sources, name, VARIABLES[name])
    if flags & FindObjectFlags.CONSTANT:
        constant = _constant(sources, name)
        if constant is not None:
            return constant
    if flags & (FindObjectFlags.VARIABLE | FindObjectFlags.FUNCTION):
        return _described(sources, name, flags)
    return None


def _constant(sources: CoreSources, name: str) -> Optional[Object]:
    try:
        types = sources.types()
    except UnavailableError as e:
        raise UnavailableError(f"cannot look up {name}: {e}") from None
    found = types.btf.find_enumerator(name)
    if found is None:
        return None
    type_id, enumerator = found
    return Object(sources.prog, types.type(type_id), enumerator.value)


def _described(
    sources: CoreSources, name: str, flags: FindObjectFlags
) -> Optional[Object]:
    """What BTF describes by itself: per-CPU variables and functions."""
    from drgn_hvo.formats.btf import BtfKind

    address = sources.address(name)
    if address is None:
        return None
    kinds = []
    if flags & FindObjectFlags.VARIABLE:
        kinds.append(BtfKind.VAR)
    if flags & FindObjectFlags.FUNCTION:
        kinds.append(BtfKind.FUNC)
    types = sources.types()
    for type_id in types.btf.find(name, kinds):
        return Object(sources.prog, types.type(type_id), address=address)
    raise UnavailableError(
        f"the kernel has {name} at {address:#x}, but BTF does not describe it; "
        "load debuginfo to use it"
    )


def _variable(sources: CoreSources, name: str, variable: Variable) -> Optional[Object]:
    if sources.extract_kind is not None and not variable.in_extracts:
        raise UnavailableError(f"{name} is not in this dump, which is an extract")
    address = sources.address(name)
    if address is None:
        return None
    prog = sources.prog
    object_type = prog.type(variable.type_name)
    if variable.lengths is not None:
        length = _length(sources, name, variable.lengths)
        object_type = prog.array_type(object_type, length)
    return Object(prog, object_type, address=address)


def _length(
    sources: CoreSources, name: str, candidates: tuple[LengthSource, ...]
) -> int:
    for candidate in candidates:
        length = _length_from(sources, candidate)
        if length is not None:
            if not 0 < length <= _MAX_LENGTH:
                raise FormatError(f"{name} cannot have {length} elements")
            return length
    raise UnavailableError(f"nothing in this core says how many elements {name} has")


def _length_from(sources: CoreSources, candidate: LengthSource) -> Optional[int]:
    from drgn_hvo.kernel.variables import ArrayMember, Enumerator

    prog = sources.prog
    if isinstance(candidate, ArrayMember):
        try:
            member = prog.type(candidate.type_name).member(candidate.member)
        except LookupError:
            return None
        found = member.type.unaliased()
        if found.kind is not TypeKind.ARRAY:
            raise DetectionError(
                f"{candidate.type_name}.{candidate.member} is {found.type_name()}, "
                "expected an array"
            )
        return found.length
    if isinstance(candidate, Enumerator):
        try:
            return prog.constant(candidate.name).value_()
        except LookupError:
            return None
    return sources.vmcoreinfo().length(candidate.name)


def _vmemmap(sources: CoreSources) -> Optional[Object]:
    """
    The ``vmemmap`` macro. drgn derives it from ``mem_section``; this is for when
    it cannot.
    """
    value = sources.vmcoreinfo().symbol("vmemmap")
    if value is None:
        return None
    return Object(sources.prog, "struct page *", value)


def _mem_section(sources: CoreSources) -> Optional[Object]:
    """
    ``mem_section``, whose type depends on ``CONFIG_SPARSEMEM_EXTREME``: VMCOREINFO
    prints the value of the pointer with it, the address of the array without.
    """
    prog = sources.prog
    address = sources.address("mem_section")
    if address is None:
        return None
    vmcoreinfo = sources.vmcoreinfo()
    value = vmcoreinfo.symbol("mem_section")
    if value is None:
        raise UnavailableError("VMCOREINFO does not say how mem_section is laid out")
    if value != address:
        return Object(prog, "struct mem_section **", address=address)
    roots = vmcoreinfo.length("mem_section")
    if not roots or roots > 1 << 32:
        raise UnavailableError("VMCOREINFO does not say how long mem_section is")
    # Without CONFIG_SPARSEMEM_EXTREME there is one section in a root.
    root = prog.array_type(prog.type("struct mem_section"), 1)
    return Object(prog, prog.array_type(root, roots), address=address)


# What scripts/kallsyms.c copies from nm(1).
_SYMBOL_KINDS = {
    **dict.fromkeys("tT", SymbolKind.FUNC),
    **dict.fromkeys("bBdDgGrRsSvV", SymbolKind.OBJECT),
}


def _symbol(entry: KernelSymbol, size: int) -> Symbol:
    if entry.type in "vVwW":
        binding = SymbolBinding.WEAK
    elif entry.type.isupper():
        binding = SymbolBinding.GLOBAL
    else:
        binding = SymbolBinding.LOCAL
    kind = _SYMBOL_KINDS.get(entry.type, SymbolKind.UNKNOWN)
    return Symbol(entry.name, entry.address, size, binding, kind)


def _find_symbol(
    prog: Program, name: Optional[str], address: Optional[int], one: bool
) -> list[Symbol]:
    sources = core_sources(prog)
    if _is_silent(sources, None):
        return []
    try:
        kallsyms = sources.kallsyms()
    except UnavailableError:
        # "No symbol" is an answer that symbolizing callers expect, and it
        # decides nothing.
        return []
    if address is not None:
        nearest = kallsyms.nearest(address)
        entries = [] if nearest is None else [nearest]
        entries = [entry for entry in entries if name in (None, entry.name)]
    elif name is not None:
        entries = kallsyms.lookup(name)
    else:
        entries = list(kallsyms)
    if one:
        entries = entries[:1]
    return [_symbol(entry, kallsyms.extent(entry.address) or 0) for entry in entries]


def are_finders_enabled(prog: Program) -> bool:
    """Whether nobody has turned off what :func:`install()` registered."""
    return (
        FINDER_NAME in prog.enabled_type_finders()
        and FINDER_NAME in prog.enabled_object_finders()
    )


def install(prog: Program, *, translates: bool = False) -> CoreSources:
    """
    Offer the core's own types and symbols to drgn, behind all other finders, and the
    kernel memory that drgn cannot translate.

    :param translates: The program reads all kernel addresses by itself.
    :return: The sources, which are read when drgn first asks.
    """
    if FINDER_NAME not in prog.registered_type_finders():
        if not translates:
            # First, so that no finder is asked before it can read.
            add_memory_segments(prog)
        prog.register_type_finder(FINDER_NAME, _find_type, enable_index=-1)
        prog.register_object_finder(FINDER_NAME, _find_object, enable_index=-1)
        prog.register_symbol_finder(FINDER_NAME, _find_symbol, enable_index=-1)
    return core_sources(prog)
