#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Self-test of HVO on the running kernel, as root.

Allocates and frees huge pages of every size that the machine has, with HVO on and off,
and runs the live check of drgn-hvo after every step. Prints KTAP. Settings are as
they were when it ends, however it ends. It takes no memory that would leave the machine
less than a quarter of what it has, or less than 512 MiB.

Exit status: 0 passed, 1 failed, 2 could not run, 4 skipped.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
import os
from pathlib import Path
import re
import signal
import sys
from typing import NoReturn, Optional

from drgn import Program
import numpy as np

from drgn_hvo.audit.defects import DEFECTS
from drgn_hvo.audit.findings import Audit, Finding
from drgn_hvo.audit.run import confirmed_audit
from drgn_hvo.errors import HvoError
from drgn_hvo.kernel.target import open_target
from drgn_hvo.memmap.hvo import hvo_of

EXIT_PASSED, EXIT_FAILED, EXIT_ERROR, EXIT_SKIPPED = 0, 1, 2, 4

_SWITCH = Path("/proc/sys/vm/hugetlb_optimize_vmemmap")
_POOLS = Path("/sys/kernel/mm/hugepages")
_NODES = Path("/sys/devices/system/node")
_MEMINFO = Path("/proc/meminfo")

# What a step allocates: enough for several pages of vmemmap, but never half the pool
# of a small machine.
_BYTES_PER_STEP = 16 << 20

_LEAST_AVAILABLE = 512 << 20


class SelfTestError(Exception):
    """Why it cannot run, as one line."""


@dataclass(frozen=True)
class Pool:
    """The huge pages of one size."""

    size: int

    @property
    def order(self) -> int:
        """As the kernel counts."""
        return (self.size // os.sysconf("SC_PAGE_SIZE")).bit_length() - 1

    @property
    def name(self) -> str:
        """For a person."""
        gib, rest = divmod(self.size, 1 << 30)
        return f"{gib} GiB" if gib and not rest else f"{self.size >> 20} MiB"

    @property
    def count(self) -> int:
        """How many a step allocates."""
        return max(1, _BYTES_PER_STEP // self.size)

    def directory(self, nid: int) -> Path:
        """Its settings on a node."""
        return _NODES / f"node{nid}/hugepages/hugepages-{self.size >> 10}kB"

    def persistent(self, nid: int) -> int:
        """How many a node has, without surplus ones, which go by themselves."""
        return self.total(nid) - self.surplus(nid)

    def surplus(self, nid: int) -> int:
        """How many a node has beyond what was asked for."""
        return _read(self.directory(nid) / "surplus_hugepages")

    def total(self, nid: int) -> int:
        """How many a node has."""
        return _read(self.directory(nid) / "nr_hugepages")

    def resize(self, nid: int, count: int) -> None:
        """Ask for *count* on a node; the kernel may give fewer."""
        (self.directory(nid) / "nr_hugepages").write_text(str(count))


def _read(path: Path) -> int:
    return int(path.read_text())


def _pools() -> list[Pool]:
    """All sizes, smallest first."""
    names = (re.fullmatch(r"hugepages-(\d+)kB", path.name) for path in _POOLS.iterdir())
    return sorted(
        (Pool(int(name[1]) << 10) for name in names if name), key=lambda p: p.size
    )


def _nids() -> list[int]:
    """Nodes that have pools."""
    found = (re.fullmatch(r"node(\d+)", path.name) for path in _NODES.iterdir())
    nids = sorted(int(name[1]) for name in found if name)
    return [nid for nid in nids if (_NODES / f"node{nid}/hugepages").is_dir()]


def _memory(field: str) -> int:
    match = re.search(rf"^{field}:\s*(\d+) kB", _MEMINFO.read_text(), re.MULTILINE)
    if match is None:
        raise SelfTestError(f"/proc/meminfo has no {field}")
    return int(match[1]) << 10


def _too_little(pool: Pool) -> Optional[str]:
    """Why a step of a pool could starve the machine, if it could."""
    least = max(_memory("MemTotal") // 4, _LEAST_AVAILABLE)
    left = _memory("MemAvailable") - pool.count * pool.size
    if left >= least:
        return None
    return (
        f"{pool.count} of {pool.name} would leave {max(left, 0) >> 20} MiB of memory, "
        f"and {least >> 20} MiB must be left"
    )


@contextmanager
def _restored(pools: list[Pool], nids: list[int]) -> Iterator[None]:
    """Leave the switch and the pools as they were, however the test ends."""
    switch = _read(_SWITCH)
    counts = {(pool, nid): pool.persistent(nid) for pool in pools for nid in nids}
    try:
        yield
    finally:
        # A second Ctrl-C must not leave the settings half restored.
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        for (pool, nid), count in counts.items():
            if pool.persistent(nid) != count:
                pool.resize(nid, count)
            if pool.persistent(nid) != count:
                print(
                    f"# could not restore {pool.name} on node {nid}: "
                    f"{pool.persistent(nid)}, was {count}"
                )
        _SWITCH.write_text(str(switch))
        print("# settings restored", flush=True)


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _subject(finding: Finding) -> tuple[object, ...]:
    return finding.rule, finding.about


class SelfTest:
    """Numbers the tests and knows what was wrong before each."""

    def __init__(self, prog: Program) -> None:
        self._prog = prog
        self._number = 0
        self._known: dict[tuple[object, ...], int] = {}
        self.failed = 0
        self.passed = 0

    def _audit(self) -> Audit:
        return confirmed_audit(hvo_of(self._prog))

    def optimized(self, pool: Pool) -> int:
        """How many huge pages of a size are optimized."""
        hugetlb = hvo_of(self._prog).hugetlb
        mine = hugetlb.folios.order == pool.order
        return int(np.count_nonzero(mine & hugetlb.optimized_mapping))

    def result(self, name: str, problems: list[str]) -> None:
        """Print one test."""
        self._number += 1
        self.failed += bool(problems)
        self.passed += not problems
        for problem in problems:
            print(f"# {problem}")
        print(f"{'not ok' if problems else 'ok'} {self._number} {name}", flush=True)

    def skip(self, name: str, reason: str) -> None:
        """Print one test that is not run."""
        self._number += 1
        print(f"ok {self._number} {name} # SKIP {reason}", flush=True)

    def check(self, name: str, *problems: str) -> None:
        """
        Run the live check as a test. What was wrong before this step is told again only
        if it touches more huge pages now.

        :param problems: What else is wrong.
        """
        audit = self._audit()
        new = [
            finding
            for finding in audit.findings
            if finding.affected > self._known.get(_subject(finding), -1)
        ]
        self._known.update((_subject(f), f.affected) for f in audit.findings)
        for rule, reasons in audit.undecided.items():
            print(f"# {rule} could not be decided: {'; '.join(reasons)}")
        told = [*problems, *(line for f in new for line in _tell(f))]
        # One defect may be behind many findings.
        self.result(name, list(dict.fromkeys(told)))


def _tell(finding: Finding) -> Iterator[str]:
    yield f"{finding.rule}: {finding.message}"
    if finding.defect is not None:
        yield f"known kernel defect {finding.defect}: {DEFECTS[finding.defect].kernels}"
        yield f"it leads to this: {DEFECTS[finding.defect].leads_to}"


def _cycle(test: SelfTest, pool: Pool, nid: int, switch: int) -> None:
    """Allocate and free on one node, with the switch in one position."""
    state = "on" if switch else "off"
    name = f"{pool.name} on node {nid} with HVO {state}"
    steps = f"allocate {name}", f"free {name}"
    reason = _too_little(pool)
    if any(pool.surplus(node) for node in _nids()):
        # Seen on 6.1: resizing one node then changes the others, too.
        reason = "the pool has surplus huge pages, and could not be restored"
    if reason is not None:
        for step in steps:
            test.skip(step, reason)
        return
    _SWITCH.write_text(str(switch))
    before, total = pool.persistent(nid), pool.total(nid)
    optimized = test.optimized(pool)
    try:
        pool.resize(nid, before + pool.count)
        got = pool.total(nid) - total
        if got <= 0:
            test.skip(steps[0], f"the kernel found no {pool.name} in one piece")
        else:
            print(f"# {got} of {pool.count} allocated")
            gained = test.optimized(pool) - optimized
            test.check(steps[0], *_wrong_gain(gained, got, switch))
    finally:
        pool.resize(nid, before)
    if got <= 0:
        test.skip(steps[1], "nothing was allocated")
        return
    left = pool.total(nid) - total
    test.check(steps[1], *([f"{left} of {got} were not freed"] if left > 0 else []))


def _wrong_gain(gained: int, got: int, switch: int) -> Iterator[str]:
    if gained != (got if switch else 0):
        yield f"of {got} new huge pages, {gained} are optimized"


def _tell_orders(prog: Program, pools: list[Pool]) -> None:
    """Say which orders cannot be tested here, and why."""
    most = hvo_of(prog).layout.tails.max_order
    reached = {pool.order for pool in pools}
    if most is None:
        print(
            f"# MAX_FOLIO_ORDER of this kernel is not known: the largest huge pages "
            f"are of order {max(reached)}"
        )
        return
    missing = [str(order) for order in range(1, most + 1) if order not in reached]
    print(
        f"# MAX_FOLIO_ORDER is {most}; huge pages have these orders: {_list(reached)}"
    )
    print(f"# out of reach, as no huge page has them: orders {', '.join(missing)}")


def _list(orders: set[int]) -> str:
    return ", ".join(map(str, sorted(orders)))


def _run() -> int:
    if os.geteuid() != 0:
        raise SelfTestError("this needs root")
    if not _SWITCH.exists():
        print("1..0 # SKIP this kernel has no HVO (vm.hugetlb_optimize_vmemmap)")
        return EXIT_SKIPPED
    pools, nids = _pools(), _nids()
    starving = _too_little(pools[0])
    if starving is not None:
        raise SelfTestError(f"refused: {starving}")
    prog = open_target("live")
    print(f"1..{1 + 4 * len(pools) * len(nids)}")
    _tell_orders(prog, pools)
    test = SelfTest(prog)
    with _restored(pools, nids):
        test.check("as found")
        for pool in pools:
            for nid in nids:
                for switch in (1, 0):
                    _cycle(test, pool, nid, switch)
    print(f"# {test.passed} passed, {test.failed} failed")
    return EXIT_FAILED if test.failed else EXIT_PASSED


def main() -> int:
    """Run the self-test."""
    argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    ).parse_args()
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    print("KTAP version 1")
    try:
        return _run()
    except (HvoError, SelfTestError) as e:
        print(f"Bail out! {e}")
    except OSError as e:
        print(f"Bail out! {e.filename}: {e.strerror}")
    except KeyboardInterrupt:
        print("Bail out! interrupted")
    return EXIT_ERROR


if __name__ == "__main__":
    sys.exit(main())
