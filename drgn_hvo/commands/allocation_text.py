# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Why no huge page can be had, for people
---------------------------------------
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from drgn_hvo.commands.document import human_size

if TYPE_CHECKING:
    from drgn_hvo.commands.reports import HstateEntry, ShowReport

__all__ = ("allocation_lines", "exhausted")


def allocation_lines(doc: ShowReport) -> Iterator[str]:
    """What can be had of each pool, mount and cgroup, or why nothing."""
    for hstate in doc["hstates"] or ():
        if hstate["total"] or hstate["asked"] or hstate["overcommit"]:
            yield f"{human_size(hstate['page_bytes'])}: {_room(hstate)}"
    for subpool in doc["subpools"] or ():
        size = human_size(doc["page_size"] << subpool["order"])
        yield f"Mount {subpool['device']} ({size}): " + _share(
            subpool["used"], subpool["limit"], subpool["minimum"], subpool["reserved"]
        )
    for limit in doc["cgroup_limits"] or ():
        size = human_size(doc["page_size"] << limit["order"])
        what = "reserved" if limit["of_reservations"] else "in use"
        left = max(limit["limit"] - limit["used"], 0)
        yield (
            f"Cgroup {limit['path']} ({size}): {limit['used']} of {limit['limit']} "
            f"{what}, {left or 'none'} can be had by its processes"
        )


def exhausted(hstate: HstateEntry) -> bool:
    """Whether a pool surely has nothing left, and cannot grow."""
    return bool(
        hstate["total"] and hstate["available"] == 0 and hstate["surplus_left"] == 0
    )


def _room(hstate: HstateEntry) -> str:
    available, left = hstate["available"], hstate["surplus_left"]
    if available is None:
        return "how many can be had is not known"
    if available:
        text = f"{available} can be had"
        if left:
            text += f", and {left} more as surplus if there is memory"
    else:
        text = f"none can be had: {_why_none(hstate)}"
    total, surplus, asked = hstate["total"], hstate["surplus"], hstate["asked"]
    if None not in (total, surplus, asked):
        missing = (asked or 0) - ((total or 0) - (surplus or 0))
        if missing > 0:
            text += f"; {missing} of {asked} that were asked for are not there"
    return text


def _why_none(hstate: HstateEntry) -> str:
    free, total, left = hstate["free"], hstate["total"], hstate["surplus_left"]
    if not total:
        text = "there are none"
    elif free:
        text = "the free one is" if free == 1 else f"all {free} that are free are"
        text += " reserved"
    else:
        text = "the only one is" if total == 1 else f"all {total} are"
        text += " in use"
    if left is None:
        return f"{text}; whether surplus ones may be made is not known"
    if left:
        return f"{text}, but {left} more may be made as surplus if there is memory"
    if hstate["overcommit"]:
        return f"{text}, and all {hstate['overcommit']} surplus ones are made"
    return f"{text}, and no surplus may be made (nr_overcommit_hugepages is 0)"


def _share(used: int, limit: object, minimum: object, reserved: int) -> str:
    parts = []
    if isinstance(limit, int):
        left = max(limit - used, 0)
        parts.append(f"{used} of {limit} in use (size=), {left or 'none'} can be had")
    if isinstance(minimum, int):
        parts.append(f"at least {minimum} (min_size=), {reserved} of them reserved")
    return "; ".join(parts) or "no limit"
