# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Types and symbols from the core itself
--------------------------------------

What drgn lacks without debuginfo is in the kernel's own memory, see
:mod:`drgn_hvo.kernel.core_sources`. :func:`install()` offers it to drgn as a type, an
object and a symbol finder, behind everything else.

drgn's helpers read :exc:`LookupError` as "this kernel was built without it", so
a finder that merely *cannot tell* must not let one through. What this module
cannot answer raises :exc:`~drgn_hvo.errors.UnavailableError` instead. Where the
kernel's debuginfo is loaded, that is the authority, and these finders are silent.

Importing this module is cheap: what reads the formats is imported when a finder
is first asked.
"""

from __future__ import annotations

from functools import wraps
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Optional,
    TypeVar,
    cast,
)

from drgn import (
    FindObjectFlags,
    Object,
    Program,
    Symbol,
    SymbolBinding,
    SymbolKind,
    Type,
    TypeKind,
    TypeKindSet,
)

from drgn_hvo.errors import DetectionError, FormatError, UnavailableError
from drgn_hvo.kernel.core_sources import (
    CoreSources,
    core_sources,
    cut_types,
    has_debuginfo,
)
from drgn_hvo.kernel.translation import add_memory_segments
from drgn_hvo.kernel.unread import RECURSION

if TYPE_CHECKING:
    from drgn_hvo.formats.kallsyms import KernelSymbol
    from drgn_hvo.kernel.variables import LengthSource, Variable

__all__ = (
    "FINDER_NAME",
    "are_finders_enabled",
    "install",
)

#: The name under which the finders are registered.
FINDER_NAME = "hvo"

# MAX_NUMNODES is at most 1024, and no array that we know of is longer.
_MAX_LENGTH = 1 << 16

_F = TypeVar("_F", bound=Callable[..., Any])


def _silent_while_translating(find: _F) -> _F:
    """A finder that has no answer while drgn sets up the translation of addresses."""

    @wraps(find)
    def finder(*args: Any) -> Any:
        try:
            return find(*args)
        except UnavailableError as e:
            if RECURSION in str(e):
                return None
            raise

    return cast(_F, finder)


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
        sources.check_not_cut(name, cut_types)
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
