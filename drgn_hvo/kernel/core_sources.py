# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Sources of types and symbols in a core
--------------------------------------

VMCOREINFO says where kallsyms is, kallsyms says where BTF is. Each is read when
somebody first needs it; why it cannot be read is kept.

Importing this module is cheap: what reads the formats is imported at that time.
"""

from __future__ import annotations

from collections.abc import Container
from contextlib import suppress
from functools import partial
import logging
from typing import (
    TYPE_CHECKING,
    Callable,
    Generic,
    Optional,
    TypeVar,
    Union,
)

from drgn import (
    FaultError,
    ModuleFileStatus,
    Object,
    PlatformFlags,
    Program,
    Type,
    TypeKind,
    TypeKindSet,
    TypeMember,
)

from drgn_hvo.errors import FormatError, HvoError, UnavailableError
from drgn_hvo.kernel.unread import RECURSION, KnownWords

if TYPE_CHECKING:
    from drgn_hvo.formats.byteorder import ByteOrder
    from drgn_hvo.formats.kallsyms import Kallsyms
    from drgn_hvo.formats.vmcoreinfo import Vmcoreinfo
    from drgn_hvo.kernel.btf_types import BtfTypes
    from drgn_hvo.kernel.image_search import KernelImage
    from drgn_hvo.kernel.translation import Translation

__all__ = (
    "CoreSources",
    "core_sources",
    "cut_types",
    "has_debuginfo",
    "program_byteorder",
)

_CACHE_KEY = "drgn_hvo.sources"

# The smallest page that a dump can leave out, in bytes.
_PAGE = 4096

_BLANK = "it reads as zeros"

# The BTF of a distribution kernel has 2 to 7 MiB, of allyesconfig some 30.
_MAX_BTF_SIZE = 256 << 20

# drgn's own, so that its settings hold.
_logger = logging.getLogger("drgn")

_T = TypeVar("_T")


class _Lazy(Generic[_T]):
    """A source that is read once; if it cannot be, the reason is kept."""

    def __init__(self, sources: CoreSources, load: Callable[[], _T]) -> None:
        self._sources = sources
        self._load = load
        self._value: Optional[_T] = None
        self._reason: Optional[str] = None

    @property
    def is_loaded(self) -> bool:
        """Whether it was read, or could not be."""
        return self._value is not None or self._reason is not None

    def __call__(self) -> _T:
        """
        The source, read at the first call.

        :raises UnavailableError: if it cannot be read, with the same reason each time.
        """
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


def cut_types() -> Container[str]:
    """The types that extracts of this version keep."""
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
        self._pages = KnownWords(prog, _PAGE)
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
            tables = KallsymsTables.read(self._kallsyms_reader, known, self.byteorder)
        except FaultError as e:
            raise UnavailableError(f"kallsyms is not in this dump: {e}") from None
        try:
            return Kallsyms(tables, noted)
        except FormatError:
            gap = self._gap_behind(known["kallsyms_names"], tables.names)
            if gap is None:
                raise
        raise UnavailableError(
            f"kallsyms is not in this dump: {FaultError(_BLANK, gap)}"
        )

    def _load_image(self) -> KernelImage:
        from drgn_hvo.kernel.image_search import read_image

        return read_image(self.prog.read, self.vmcoreinfo().addresses())

    def _load_tables(self) -> dict[str, int]:
        from drgn_hvo.formats.kallsyms import TABLES

        known = self.vmcoreinfo().addresses()
        tables = any(f"kallsyms_{kind}" in known for kind in ("offsets", "addresses"))
        if tables and all(name in known for name in TABLES):
            return {}
        known = {n: at for n, at in known.items() if not n.startswith("kallsyms_")}
        from drgn_hvo.kernel.image_search import find_tables

        return find_tables(self.image(), known, self.byteorder)

    def _load_types(self) -> BtfTypes:
        from drgn_hvo.formats.btf import Btf
        from drgn_hvo.kernel.btf_types import BtfTypes
        from drgn_hvo.kernel.drgn_heads import warn_by_types

        data = self._read_btf(self.address)
        types = BtfTypes(self.prog, Btf(data))
        for name, known in self._early.items():
            if known is not None:
                types.adopt(name, known)
        _logger.warning(
            "no debuginfo of this kernel: drgn-hvo takes types from its BTF and "
            "symbols from its kallsyms"
        )
        structs = TypeKindSet([TypeKind.STRUCT])
        found = (types.find(structs, name) for name in ("zone", "pglist_data"))
        with suppress(HvoError):
            warn_by_types(self.prog, *found)
        return types

    def _read_btf(self, address: Callable[[str], Optional[int]]) -> bytes:
        start: Optional[int]
        stop: Optional[int]
        try:
            start, stop = address("__start_BTF"), address("__stop_BTF")
        except UnavailableError:
            # Without symbols, it can only be looked for.
            from drgn_hvo.kernel.image_search import find_types

            start, stop = find_types(self.image())
        if start is None or stop is None:
            raise UnavailableError(
                "this kernel was built without BTF (CONFIG_DEBUG_INFO_BTF)"
            )
        if not start < stop <= start + _MAX_BTF_SIZE:
            raise FormatError(f"BTF is damaged: it spans {start:#x} to {stop:#x}")
        try:
            return self._read_table(start, stop - start)
        except FaultError as e:
            raise UnavailableError(f"BTF is not in this dump: {e}") from None

    @property
    def _kallsyms_reader(self) -> Callable[[int, int], bytes]:
        # Names that were cut down leave a gap behind them, whose pages are zeros; that
        # this is an extract, --vmcoreinfo may not say.
        start = self.vmcoreinfo().addresses().get("kallsyms_names")
        return lambda at, size: self._read_table(at, size, may_end=at == start)

    def _read_table(self, address: int, size: int, may_end: bool = False) -> bytes:
        """
        Read a part of kallsyms or BTF, of which no page is all zeros: of symbols
        without offsets and types without names, any could be another.

        :param may_end: Whether all that is behind some page may be zeros.
        :raises FaultError: if it is not in the dump.
        """
        data = self.prog.read(address, size)
        size = len(data.rstrip(b"\0")) if may_end else size
        for page in range(address & -_PAGE, address + size, _PAGE):
            begin, end = max(page - address, 0), page + _PAGE - address
            # What is there may begin with zeros, or be a few at the end of a table.
            if any(data[begin : begin + 16]) or any(data[begin:end]):
                continue
            if self._pages.is_blank(page):
                raise FaultError(_BLANK, page)
        return data

    def _gap_behind(self, address: int, data: bytes) -> Optional[int]:
        """The first page of zeros with which a table ends, if it does."""
        end = address + len(data.rstrip(b"\0"))
        page = -(-end // _PAGE) * _PAGE
        is_gap = page + _PAGE <= address + len(data) and self._pages.is_blank(page)
        return page if is_gap else None

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
        symbols = KallsymsLookup(self._kallsyms_reader, known, self.byteorder)
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
