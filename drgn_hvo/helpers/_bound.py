# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What helpers share
------------------

The kernel behind a program, and one struct page of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

from drgn import FaultError, Object, Program, Type, TypeKind
from drgn.helpers import ValidationError
import numpy as np

from drgn_hvo.audit.confirm import confirmed
from drgn_hvo.audit.findings import Audit
from drgn_hvo.audit.rules import RuleId
from drgn_hvo.errors import UnavailableError
from drgn_hvo.formats.tail_words import ALL_ONES, is_poisoned
from drgn_hvo.kernel.arrays import ByteArray
from drgn_hvo.memmap.hvo import Hvo, hvo

__all__ = (
    "StructPage",
    "SubjectAudit",
    "folio_type",
    "named_type",
    "page_pfn",
    "pointer_value",
    "read_folio",
    "read_page",
    "require_hugetlb",
    "struct_page",
    "validate",
)


def require_hugetlb(bound: Hvo) -> None:
    """
    :raises UnavailableError: if the pools and folios of a kernel cannot be read.
    """
    if not bound.kernel.has_types:
        raise UnavailableError(
            f"huge pages cannot be read without types: {bound.kernel.no_types_reason}; "
            "debuginfo would do"
        )
    if not bound.vmemmap.has_mappings:
        raise UnavailableError(
            f"the page tables of {bound.kernel.arch} cannot be walked, so nothing "
            "tells what HVO did"
        )


def named_type(prog: Program, name: str) -> Optional[Type]:
    """
    A type.

    :return: ``None`` if the kernel has none of that name.
    """
    try:
        return prog.type(name)
    except LookupError:
        return None


def pointer_value(argument: object, *tags: str) -> tuple[Program, int]:
    """
    The program and the address of what a helper was given.

    :param tags: Tags of the structures that it may point to, the documented one first.
    :raises TypeError: if it is no pointer to any of them.
    :raises FaultError: if the pointer itself cannot be read.
    """
    if not isinstance(argument, Object):
        raise TypeError(f"expected struct {tags[0]} *, not {type(argument).__name__}")
    pointer = argument.type_.unaliased()
    if pointer.kind == TypeKind.POINTER:
        target = pointer.type.unaliased()
        if target.kind == TypeKind.STRUCT and target.tag in tags:
            return argument.prog_, argument.value_()
    raise TypeError(f"expected struct {tags[0]} *, not {argument.type_.type_name()}")


def folio_type(prog: Program) -> Type:
    """
    ``struct folio *``. Since Linux kernel commit 7b230db3b8d3 ("mm: Introduce struct
    folio") (in v5.16).

    :raises UnavailableError: if the kernel has no such type.
    """
    found = named_type(prog, "struct folio *")
    if found is None:
        raise UnavailableError(
            "this kernel has no struct folio, which came with Linux 5.16; "
            "compound_head() gives the head as a struct page"
        )
    return found


@dataclass(frozen=True)
class StructPage:
    """
    One struct page, copied.

    :param address: Where it is.
    :param pfn: The PFN of the page that it describes.
    :param data: Its bytes.
    """

    bound: Hvo
    address: int
    pfn: int
    data: bytes

    def word(self, offset: int) -> int:
        """The word at an offset in bytes."""
        word = self.data[offset : offset + 8]
        return int.from_bytes(word, self.bound.kernel.sources.byteorder)

    @property
    def info(self) -> int:
        """``compound_info``, or ``compound_head`` before v7.1."""
        return self.word(self.bound.kernel.struct_page.offset)

    @property
    def flags(self) -> int:
        """``flags``."""
        return self.word(self.bound.kernel.struct_page.flags)

    @property
    def has_PG_head(self) -> bool:
        """Whether ``PG_head`` is set: of heads, and of fake ones."""
        return bool(self.flags & self.bound.kernel.PG_head_mask)

    @property
    def is_poisoned(self) -> bool:
        """Whether it was never initialised."""
        return is_poisoned(self.info)

    def head_address(self) -> int:
        """
        Mirror of ``_compound_head()``, with ``page_fixed_fake_head()`` where heads
        can be fake.

        :raises FaultError: if it may be a fake head and the struct page behind it
            cannot be read.
        """
        if self.is_poisoned:
            return self.address
        return self.bound.heads.one(
            self.pfn, self.info, self.flags, lambda: self.behind().info
        )

    @property
    def is_head(self) -> bool:
        """Mirror of ``PageHead()``."""
        return (
            not self.is_poisoned
            and self.has_PG_head
            and self.head_address() == self.address
        )

    def behind(self) -> StructPage:
        """
        The next struct page.

        :raises FaultError: if it cannot be read.
        """
        return struct_page(self.bound, self.address + len(self.data))

    def row(self) -> ByteArray:
        """
        It and the struct page behind it, as ``FolioFields`` wants it; zeros if it is no
        head, as then the next one is not its own.
        """
        behind = bytes(len(self.data))
        if self.is_head:
            behind = self.behind().data
        return np.frombuffer(self.data + behind, dtype=np.uint8).reshape(1, -1)

    def is_hugetlb(self) -> bool:
        """
        Mirror of ``folio_test_hugetlb()``; false if it is no head.

        :raises UnavailableError: if nothing says how this kernel recognises hugetlb.
        """
        found = self.bound.fields.are_hugetlb(self.row())
        if found is None:
            raise UnavailableError(
                "nothing says how this kernel recognises hugetlb folios"
            )
        return bool(found[0])

    def head(self) -> StructPage:
        """
        The struct page of its head.

        :raises FaultError: if it cannot be read.
        """
        address = self.head_address()
        return self if address == self.address else struct_page(self.bound, address)

    def order(self) -> int:
        """
        Mirror of ``compound_order()``.

        :raises UnavailableError: if nothing says where folios keep their order.
        """
        if not self.is_head:
            return 0
        orders = self.bound.fields.orders(self.row())
        if orders is None:
            raise UnavailableError("nothing says where folios keep their order")
        return int(orders[0])


def page_pfn(bound: Hvo, address: int) -> int:
    """
    The PFN whose struct page is at an address.

    :raises FaultError: if no struct page can be there.
    """
    pfn = bound.vmemmap.page_pfn(address)
    if pfn is None:
        raise FaultError("not the address of a struct page", address)
    return pfn


def struct_page(bound: Hvo, address: int) -> StructPage:
    """
    Read a struct page.

    :raises FaultError: if there is none at *address*, or it cannot be read.
    """
    address &= ALL_ONES
    pfn = page_pfn(bound, address)
    data = bound.kernel.prog.read(address, bound.kernel.struct_page.size)
    return StructPage(bound, address, pfn, data)


def read_page(page: object) -> StructPage:
    """
    Read the struct page that a helper was given.

    :param page: ``struct page *``
    :raises TypeError: if it is something else.
    :raises FaultError: if there is no struct page at that address, or it cannot be
        read.
    """
    prog, address = pointer_value(page, "page")
    return struct_page(hvo(prog), address)


def read_folio(folio: object) -> StructPage:
    """
    Read the first struct page of the folio that a helper was given.

    :param folio: ``struct folio *``, or ``struct page *`` of its head.
    :raises TypeError: if it is something else.
    :raises FaultError: if there is no struct page at that address, or it cannot be
        read.
    """
    prog, address = pointer_value(folio, "folio", "page")
    return struct_page(hvo(prog), address)


@dataclass
class SubjectAudit(Audit):
    """
    An audit of one subject, such as a folio.

    :param no_subject: Why what was named is no such subject, if it is none.
    """

    no_subject: Optional[str] = None

    @property
    def accuses(self) -> bool:
        """Whether the subject is wrong, or is none."""
        return bool(self.findings) or self.no_subject is not None

    def keep_common(self, earlier: Audit) -> None:
        """Forget what an earlier audit of the same subject did not find as well."""
        super().keep_common(earlier)
        assert isinstance(earlier, SubjectAudit)
        if self.no_subject != earlier.no_subject:
            self.no_subject = None


def validate(
    prog: Program,
    look: Callable[[Hvo], SubjectAudit],
    rules: tuple[RuleId, ...],
    address: int,
) -> None:
    """
    Validate one subject, on a running kernel as often as an audit looks at all.

    :param look: Audits the subject in one reading of the kernel, and keeps the findings
        that count.
    :param rules: Those that have to be decided.
    :param address: Of what is validated.
    :raises ValidationError: if there is a finding, or no such subject.
    :raises FaultError: if there is none, but not everything could be read.
    :raises UnavailableError: if there is none, but a rule could not be decided.
    """
    audit = confirmed(hvo(prog), look)
    if audit.no_subject is not None:
        raise ValidationError(audit.no_subject)
    findings = audit.findings
    if findings:
        ordered = Audit(findings=findings).ordered()
        first, _ = ordered[0]
        more = f" (and {len(ordered) - 1} more)" if len(ordered) > 1 else ""
        raise ValidationError(f"{first.rule}: {first.message}{more}")
    reasons = [why for rule in rules for why in audit.undecided.get(rule, ())]
    if reasons and audit.not_in_dump:
        raise FaultError(reasons[0], address)
    if reasons:
        raise UnavailableError(reasons[0])
