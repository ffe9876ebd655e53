# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Helpers given what they do not take
-----------------------------------

Every exported helper is given NULL, addresses at which there is no such structure,
plain integers, and objects of other types. It says what it was not given; it never
answers, and never fails in a way of Python's own.
"""

import inspect
from types import GeneratorType

import drgn
import pytest

import drgn_hvo
from drgn_hvo.errors import HvoError
from drgn_hvo.kernel.finders import install
from drgn_hvo.memmap.hvo import hvo_of
from tests.synth_support import describe, machine_and_program

HELPERS = {
    name: getattr(drgn_hvo, name)
    for name in drgn_hvo.__all__
    if inspect.isfunction(getattr(drgn_hvo, name))
}

# What the parameter of a helper is called, and the types that it may point to.
TAKES = {
    "page": ("struct page",),
    "folio": ("struct folio", "struct page"),
    "zone": ("struct zone",),
    "hstate": ("struct hstate",),
}

OF_OBJECTS = {
    name: parameter
    for name, helper in HELPERS.items()
    for parameter in inspect.signature(helper).parameters
    if parameter in TAKES
}

OTHER_TYPES = ("struct page", "struct folio", "struct zone", "struct hstate")


@pytest.fixture(scope="module", params=["shared-7.3", "fake-head-6.12"])
def prog(request):
    _, made = machine_and_program(describe(request.param))
    install(made)
    return made


def call(prog, name, argument):
    helper = HELPERS[name]
    if OF_OBJECTS[name] == "hstate":
        return list(helper(prog, argument))
    found = helper(argument)
    return list(found) if isinstance(found, GeneratorType) else found


def has_tails(prog):
    return hvo_of(prog).layout.tails.array is not None


def test_every_helper_is_here():
    others = set(HELPERS) - set(OF_OBJECTS)
    assert others == {
        "compound_heads",
        "compound_info_has_mask",
        "for_each_vmemmap_tail",
        "hugetlb_changes",
        "snapshot_hugetlb",
        "vmemmap_saved",
    }


@pytest.mark.parametrize("name", OF_OBJECTS)
@pytest.mark.parametrize("what", [0, 7, "page", 2.5, b"x", None], ids=repr)
def test_what_is_no_object(prog, name, what):
    if OF_OBJECTS[name] == "hstate" and what is None:
        what = ()  # None stands for all pools.
    with pytest.raises(TypeError, match=r"^expected struct \w+ \*, not \w+$"):
        call(prog, name, what)


@pytest.mark.parametrize("name", OF_OBJECTS)
def test_objects_of_other_types(prog, name):
    vmemmap = hvo_of(prog).vmemmap
    address = vmemmap.page_address(0x1000)
    accepted = TAKES[OF_OBJECTS[name]]
    wrong = [drgn.Object(prog, "unsigned long", address)]
    wrong += [drgn.Object(prog, "void *", address)]
    wrong += [
        drgn.Object(prog, f"{other} *", address)
        for other in OTHER_TYPES
        if other not in accepted
    ]
    # The structure in place of a pointer to it, and a pointer to such a pointer.
    wrong += [drgn.Object(prog, accepted[0], address=address)]
    wrong += [drgn.Object(prog, f"{accepted[0]} **", address)]
    for argument in wrong:
        with pytest.raises(TypeError, match=rf"^expected {accepted[0]} \*, not "):
            call(prog, name, argument)


@pytest.mark.parametrize("name", OF_OBJECTS)
def test_addresses_at_which_there_is_none(prog, name):
    vmemmap = hvo_of(prog).vmemmap
    page = vmemmap.page_address(0x1000)
    end = vmemmap.page_address(vmemmap.kernel.max_pfn_limit)
    nowhere = [0, 1, 8, vmemmap.base + 1, page + 1, page + vmemmap.size // 2]
    nowhere += [vmemmap.base - vmemmap.size, end, 1 << 63, 2**64 - vmemmap.size]
    structure = TAKES[OF_OBJECTS[name]][0]
    refused = drgn.FaultError
    if name in ("vmemmap_tails", "validate_shared_tail") and not has_tails(prog):
        refused = HvoError
    for address in nowhere:
        argument = drgn.Object(prog, f"{structure} *", address)
        with pytest.raises(refused) as raised:
            call(prog, name, argument)
        assert "\n" not in str(raised.value)
        if refused is drgn.FaultError:
            assert f"{address:#x}" in str(raised.value)


def test_a_typedef_of_the_pointer_is_taken(prog):
    page_type = prog.type("struct page *")
    alias = prog.typedef_type("page_ptr_t", page_type)
    address = hvo_of(prog).vmemmap.page_address(0x1000)
    page = drgn.Object(prog, alias, address)
    assert drgn_hvo.compound_head(page).value_() == address


def test_the_right_arguments_are_answered(prog):
    """The same calls with what they take, so that no refusal hides behind another."""
    folio = next(iter(drgn_hvo.for_each_hugetlb_folio(prog)))
    page = drgn.Object(prog, "struct page *", folio.value_())
    zone = drgn_hvo.page_zone(page)
    hstates = hvo_of(prog).hugetlb.hstates
    hstate = drgn.Object(prog, "struct hstate *", hstates[0].address)
    arguments = {"page": page, "folio": folio, "zone": zone, "hstate": hstate}
    for name, parameter in OF_OBJECTS.items():
        if name == "validate_shared_tail":
            continue
        if name == "vmemmap_tails" and not has_tails(prog):
            continue
        call(prog, name, arguments[parameter])
    if has_tails(prog):
        tail = next(iter(drgn_hvo.for_each_vmemmap_tail(prog)))
        drgn_hvo.validate_shared_tail(tail.page)
