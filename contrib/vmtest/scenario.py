# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What is done with a guest
-------------------------

A described mix of huge pages, and the questions that drgn-hvo must answer as the
guest does itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import re
from typing import Any

from contrib.vmtest.guest import Guest
from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.commands.show import show_document
from drgn_hvo.kernel.target import open_target
from drgn_hvo.memmap.hvo import hvo_of

__all__ = (
    "BOOT",
    "MIX",
    "Pools",
    "compare",
    "guest_pools",
    "inspect",
    "live_checks",
    "make_mix",
    "selftest",
)

#: On the command line: HVO on, and huge pages from boot on both nodes.
BOOT = (
    "hugetlb_free_vmemmap=on hugepagesz=1G hugepages={gigantic} "
    "hugepagesz=2M hugepages=0:16,1:16"
)

_SYS_2M = "/sys/devices/system/node/node{nid}/hugepages/hugepages-2048kB"
_SYS_1G = "/sys/kernel/mm/hugepages/hugepages-1048576kB"


@dataclass(frozen=True)
class Step:
    """
    A step of the mix.

    :param what: For the log.
    :param needs_gigantic: Whether it needs a 1 GiB page from boot.
    """

    what: str
    command: str
    needs_gigantic: bool = False


#: Run one after the other when the guest is up.
MIX = (
    Step(
        "allocated at run time, on both nodes",
        f"echo 28 >{_SYS_2M.format(nid=0)}/nr_hugepages;"
        f" echo 24 >{_SYS_2M.format(nid=1)}/nr_hugepages",
    ),
    Step("in use", "fallocate -l 40M /huge2m/used"),
    Step("freed again", f"echo 20 >{_SYS_2M.format(nid=1)}/nr_hugepages"),
    Step(
        "surplus: in use beyond what the pool may have",
        "echo 8 >/proc/sys/vm/nr_overcommit_hugepages;"
        " free=$(grep HugePages_Free /proc/meminfo | tr -dc 0-9);"
        " fallocate -l $((free * 2 + 6))M /huge2m/surplus",
    ),
    Step(
        "1 GiB demoted to 2 MiB",
        f"echo 1 >{_SYS_1G}/demote",
        needs_gigantic=True,
    ),
    Step(
        "not optimized",
        # A pool that grows makes its surplus pages persistent first.
        f"for pool in {_SYS_2M.format(nid='*')};"
        " do grep -q '^0' $pool/surplus_hugepages && break; done;"
        " echo 0 >/proc/sys/vm/hugetlb_optimize_vmemmap;"
        " n=$(cat $pool/nr_hugepages);"
        " echo $((n + 5)) >$pool/nr_hugepages;"
        " echo 1 >/proc/sys/vm/hugetlb_optimize_vmemmap",
    ),
)


@dataclass(frozen=True)
class Pools:
    """
    Counters of huge pages by (node, size in bytes), and of the whole guest by size.
    """

    nodes: dict[tuple[int, int], dict[str, int]]
    totals: dict[int, dict[str, int]]


def make_mix(guest: Guest, *, gigantic: bool, log: Callable[[str], None]) -> None:
    """Bring the guest's huge pages into the described state."""
    for step in MIX:
        if gigantic or not step.needs_gigantic:
            output = guest.run(step.command, timeout=120)
            log(f"{step.what}{': ' + output.strip() if output.strip() else ''}")


_COUNTER = re.compile(
    r"^/sys/(?:devices/system/node/node(?P<nid>\d+)|kernel/mm)/hugepages/"
    r"hugepages-(?P<kib>\d+)kB/(?P<name>\w+)_hugepages:(?P<value>\d+)$",
    re.MULTILINE,
)


def guest_pools(guest: Guest) -> Pools:
    """What the guest's ``/sys`` says."""
    output = guest.run(
        "grep . /sys/devices/system/node/node*/hugepages/*/*_hugepages"
        " /sys/kernel/mm/hugepages/*/*_hugepages"
    )
    pools = Pools({}, {})
    for match in _COUNTER.finditer(output):
        size, value = int(match["kib"]) << 10, int(match["value"])
        if match["nid"] is not None:
            of = pools.nodes.setdefault((int(match["nid"]), size), {})
        else:
            of = pools.totals.setdefault(size, {})
        of[match["name"]] = value
    return pools


def compare(pools: Pools, shown: dict[str, Any]) -> list[str]:
    """
    Hold ``show`` against the guest.

    :param shown: What ``show --json`` prints.
    :return: The differences, one line each.
    """
    wrong = []

    def check(what: str, ours: int, theirs: int) -> None:
        if ours != theirs:
            wrong.append(f"{what}: show says {ours}, the guest's /sys {theirs}")

    sizes = {hstate["page_bytes"] for hstate in shown["hstates"]}
    if sizes != set(pools.totals):
        wrong.append(f"pools: show has {sizes}, the guest's /sys {set(pools.totals)}")
        return wrong
    for hstate in shown["hstates"]:
        size = hstate["page_bytes"]
        total = pools.totals[size]
        name = f"{size >> 20} MiB pages"
        check(name, hstate["total"], total["nr"])
        check(f"free {name}", hstate["free"], total["free"])
        check(f"surplus {name}", hstate["surplus"], total["surplus"])
        check(f"reserved {name}", hstate["reserved"], total["resv"])
        for node in hstate["nodes"]:
            theirs = pools.nodes[node["nid"], size]
            where = f"{name} of node {node['nid']}"
            check(where, node["total"], theirs["nr"])
            check(f"found {where}", node["folios"], theirs["nr"])
            check(f"free {where}", node["free"], theirs["free"])
            check(f"surplus {where}", node["surplus"], theirs["surplus"])
    return wrong


@dataclass(frozen=True)
class Inspection:
    """What ``show`` and ``check`` say of a target."""

    shown: dict[str, Any]
    checked: dict[str, Any]

    @property
    def unknown(self) -> int:
        """How many errors were found that no known defect explains."""
        return sum(
            finding["severity"] == "error" and finding["defect"] is None
            for finding in self.checked["findings"]
        )

    @property
    def messages(self) -> list[str]:
        """What was found."""
        return [finding["message"] for finding in self.checked["findings"]]

    @property
    def verdict(self) -> str:
        """The result of ``check``, in a few words."""
        by_rule: dict[str, int] = {}
        for finding in self.checked["findings"]:
            defect = f" ({finding['defect']})" if finding["defect"] else ""
            name = f"{finding['severity']} `{finding['rule']}`{defect}"
            by_rule[name] = by_rule.get(name, 0) + 1
        if not by_rule:
            return "clean" if self.checked["complete"] else "incomplete"
        return ", ".join(f"{n} x {name}" for name, n in by_rule.items())


def inspect(target: str) -> Inspection:
    """Look at a target as ``show`` and ``check`` do."""
    prog = open_target(target)
    return Inspection(
        dict(show_document(hvo_of(prog), target, folios=False)),
        dict(check_document(hvo_of(prog), target, CheckScope())),
    )


# An emulated guest needs seconds for one check.
_SECONDS_PER_CHECK = 60


def live_checks(guest: Guest, count: int, log: Callable[[str], None]) -> int:
    """
    Check the guest from inside, while huge pages come and go.

    :return: 0 if nothing was found that no known defect explains.
    """
    churn = guest.run("sh /scripts/churn.sh 2048 >/tmp/churn.log 2>&1 & echo $!")
    output, status = guest.status(
        f"guest-python /scripts/live_checks.py -n {count} --every 20",
        timeout=120 + _SECONDS_PER_CHECK * count,
        each=log,
    )
    guest.run(f"kill {churn.strip()}")
    turns = guest.run("cat /tmp/churn.turn").strip()
    print(f"from inside, {turns} changes of the pools meanwhile:")
    print(output.strip())
    return status


def selftest(guest: Guest, log: Callable[[str], None]) -> int:
    """
    Run the self-test inside.

    :return: 0 if it passed.
    """
    # It does not touch pools with surplus pages.
    guest.run("rm -f /huge2m/*; echo 0 >/proc/sys/vm/nr_overcommit_hugepages")
    output, status = guest.status(
        "guest-python /scripts/hvo_selftest.py", timeout=1800, each=log
    )
    print(output.strip())
    return status
