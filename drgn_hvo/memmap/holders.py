# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Who has a huge page
-------------------

References to a huge page are taken by the file whose page cache it is in, by each
mapping, and by whoever pins it. The first two can be found; a pin leaves no trace but
its reference, so what is left over are pins, or references that somebody forgot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from drgn import FaultError, Object, offsetof

from drgn_hvo.errors import UnavailableError
from drgn_hvo.kernel.processes import Mapping, Mappings, mappings_of
from drgn_hvo.kernel.unread import READS_AS_ZEROS
from drgn_hvo.memmap.hvo import Hvo

__all__ = ("FileOfPage", "Holders", "holders_of")

# PAGE_MAPPING_FLAGS: what struct page keeps in the low bits of "mapping".
_MAPPING_FLAGS = 3
_MAPPING_ANON = 1

# NAME_MAX: no name of a file is longer.
_NAME_MAX = 255

# hugetlb_file_setup() makes files of these names, memfd_create() and shmget() others.
_KINDS = (
    ("anon_hugepage", "anonymous shared memory"),
    ("SYSV", "System V shared memory"),
    ("memfd:", "memfd"),
)

# Where kernels count pins of a compound page: the member, and in which of its struct
# pages. folio->_pincount since Linux kernel commit 94688e8eb453 ("mm: remove
# folio_pincount_ptr() and head_compound_pincount()") (in v6.3).
_PIN_COUNTS = (("compound_pincount", 1), ("hpage_pinned_refcount", 2))


@dataclass(frozen=True)
class FileOfPage:
    """
    The file in whose page cache a huge page is.

    :param kind: ``"hugetlbfs file"``, ``"System V shared memory"``, ``"memfd"`` or
        ``"anonymous shared memory"``; ``None`` if its name was not read.
    :param name: ``None`` if it was not read, or the file has none any more.
    :param inode: Its number, ``None`` if it was not read.
    :param index: ``folio->index``, ``None`` if it was not read.
    """

    address: int
    kind: Optional[str]
    name: Optional[str]
    inode: Optional[int]
    index: Optional[int]


@dataclass(frozen=True)
class Holders:
    """
    Who has a huge page; what is ``None`` is not known.

    :param refcount: ``_refcount`` of its head.
    :param mapcount: How many mappings the kernel counts.
    :param pincount: How many pins the kernel counts; it counts them since v5.7.
    :param anonymous: Whether it is private memory of processes.
    :param file: The file that has it.
    :param file_references: How many references the page cache of that file has.
    :param mappings: Those that were found in page tables of processes.
    :param left_over: References that neither the file nor the mappings account for.
    :param unread: What could not be looked at, a sentence each.
    """

    refcount: Optional[int]
    mapcount: Optional[int]
    pincount: Optional[int]
    anonymous: Optional[bool]
    file: Optional[FileOfPage]
    file_references: int
    mappings: tuple[Mapping, ...]
    left_over: Optional[int]
    unread: tuple[str, ...]

    @property
    def is_found(self) -> bool:
        """Whether anybody was found who has it."""
        return self.file is not None or bool(self.mappings)


def holders_of(hvo: Hvo, head_pfn: int, order: int) -> Holders:
    """Find all who have a huge page."""
    head = _Head(hvo, head_pfn)
    refcount, mapcount = head.refcount, head.mapcount
    mapping = head.mapping
    anonymous = None if mapping is None else bool(mapping & _MAPPING_ANON)
    file = None
    if mapping is not None and mapping and not anonymous:
        file = _file(hvo, mapping & ~_MAPPING_FLAGS, head.index)
    try:
        found = mappings_of(hvo.kernel, head_pfn, head_pfn + (1 << order))
    except UnavailableError as e:
        found = Mappings((), (f"processes cannot be looked at: {e}",))
    of_file = 0
    if file is not None and refcount is not None:
        # One for each page since Linux kernel commit a08c7193e4f1 ("mm/filemap: remove
        # hugetlb special casing in filemap.c") (in v6.7), before that one in all.
        of_file = 1 << order if refcount >= 1 << order else 1
    left_over = None
    if refcount is not None and mapcount is not None and mapping is not None:
        left_over = refcount - of_file - mapcount
    # Where as many were found as the kernel counts, nothing was missed.
    unread = list(found.unread) if mapcount != len(found.found) else []
    if refcount is None or mapping is None:
        unread.insert(0, f"the struct page of PFN {head_pfn} could not be read")
    if mapcount not in (None, len(found.found)):
        unread.append(
            f"the kernel counts {mapcount} mappings, {len(found.found)} were found"
        )
    return Holders(
        refcount,
        mapcount,
        head.pincount,
        anonymous,
        file,
        of_file,
        found.found,
        left_over,
        tuple(unread),
    )


class _Head:
    """The head of a folio; what cannot be read of it is ``None``."""

    def __init__(self, hvo: Hvo, pfn: int) -> None:
        self._hvo = hvo
        self._address = hvo.vmemmap.page_address(pfn)
        self._folio = hvo.kernel.type("struct folio")
        self._page = hvo.kernel.type("struct page")

    def _number(self, offset: int, size: int) -> Optional[int]:
        read = self._hvo.kernel.prog.read
        byteorder = self._hvo.kernel.reader.byteorder
        try:
            if self._hvo.kernel.known_words.is_blank(self._address):
                return None
            data = read(self._address + offset, size)
        except FaultError:
            return None
        return int.from_bytes(data, byteorder, signed=size == 4)

    @property
    def refcount(self) -> Optional[int]:
        return self._number(self._hvo.kernel.struct_page.require("refcount"), 4)

    @property
    def mapping(self) -> Optional[int]:
        offset = self._hvo.kernel.struct_page.mapping
        return None if offset is None else self._number(offset, 8)

    @property
    def index(self) -> Optional[int]:
        for of in (self._folio, self._page):
            if of is not None and of.has_member("index"):
                return self._number(offsetof(of, "index"), 8)
        return None

    @property
    def mapcount(self) -> Optional[int]:
        """``folio_entire_mapcount()``, which counts from -1."""
        counted = self._counter("_entire_mapcount", (("compound_mapcount", 1),))
        return None if counted is None else counted + 1

    @property
    def pincount(self) -> Optional[int]:
        return self._counter("_pincount", _PIN_COUNTS)

    def _counter(
        self, of_folio: str, of_pages: tuple[tuple[str, int], ...]
    ) -> Optional[int]:
        if self._folio is not None and self._folio.has_member(of_folio):
            return self._number(offsetof(self._folio, of_folio), 4)
        for name, index in of_pages:
            if self._page is not None and self._page.has_member(name):
                offset = index * self._hvo.vmemmap.size + offsetof(self._page, name)
                return self._number(offset, 4)
        return None


def _file(hvo: Hvo, address: int, index: Optional[int]) -> FileOfPage:
    prog = hvo.kernel.prog
    number: Optional[int] = None
    name: Optional[str] = None
    kind: Optional[str] = None
    try:
        inode = Object(prog, "struct address_space *", address).host
        number = int(hvo.kernel.known_words.value(inode.i_ino))
        name = _name(inode)
        if name is not None:
            kinds = (kind for prefix, kind in _KINDS if name.startswith(prefix))
            kind = next(kinds, "hugetlbfs file")
    except (AttributeError, FaultError, LookupError):
        pass  # what was read until then is known
    return FileOfPage(address, kind, name, number, index)


def _name(inode: Object) -> Optional[str]:
    """The name of a file, below the root of its file system."""
    first = inode.i_dentry.first.read_()
    if not first:
        return None  # all its names were removed
    names: list[str] = []
    dentry = _dentry(first)
    # A path has at most PATH_MAX bytes, 4096.
    while len(names) < 2048:
        parent = dentry.d_parent.read_()
        if parent == dentry and names:
            break
        qstr = dentry.d_name
        length = min(int(qstr.len), _NAME_MAX)
        data = inode.prog_.read(qstr.name.value_(), length)
        if not data or 0 in data:
            raise FaultError(READS_AS_ZEROS, qstr.name.value_())
        names.append(data.decode(errors="replace"))
        if parent == dentry:
            break
        dentry = parent
    return "/".join(reversed(names))


def _dentry(node: Object) -> Object:
    """The dentry of an entry of ``inode->i_dentry``."""
    from drgn import container_of

    for member in ("d_u.d_alias", "d_alias"):
        try:
            return container_of(node, "struct dentry", member)
        except LookupError:
            continue
    raise LookupError("struct dentry has no d_alias")
