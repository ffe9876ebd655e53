# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Cores whose VMCOREINFO does not name kallsyms
---------------------------------------------

Takes the keys that name kallsyms and BTF out of a core's VMCOREINFO and compares what
the commands say: ``python -m tools.lost_keys CORE…``. Kernels before v6.0 lack them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import logging
import os
import sys
import tempfile
import time
from typing import Any, Optional

from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.commands.failures import failure
from drgn_hvo.commands.show import show_document
from drgn_hvo.kernel.target import open_target
from drgn_hvo.memmap.hvo import hvo_of

__all__ = ("answers", "main", "without_keys")

_LOST = (b"SYMBOL(kallsyms_", b"SYMBOL(__start_BTF)", b"SYMBOL(__stop_BTF)")


def without_keys(note: bytes) -> bytes:
    """VMCOREINFO without the keys that name kallsyms and BTF."""
    lines = note.split(b"\n")
    return b"\n".join(line for line in lines if not line.startswith(_LOST))


def answers(path: str, note: Optional[str] = None) -> dict[str, Any]:
    """What ``show`` and ``check`` say of a core, or why they say nothing."""
    said: dict[str, Any] = {}
    try:
        known = hvo_of(open_target(path, (), note))
        said["show"] = show_document(known, path, folios=True)
        said["check"] = check_document(known, path, CheckScope())
    except Exception as e:
        reason = failure(e)
        if reason is None:
            raise
        said["error"] = reason
    return said


def main(argv: Optional[Sequence[str]] = None) -> int:
    """
    Compare cores.

    :return: 0 if all say the same, else 1.
    """
    parser = argparse.ArgumentParser(prog="tools.lost_keys", description=__doc__)
    parser.add_argument("cores", nargs="+", metavar="CORE")
    args = parser.parse_args(argv)
    os.environ.setdefault("DRGN_DISABLE_PLUGINS", "*")
    logging.getLogger("drgn").setLevel(logging.CRITICAL)
    different = 0
    for path in args.cores:
        note: bytes = open_target(path, (), None)["VMCOREINFO"].string_()
        with tempfile.NamedTemporaryFile() as file:
            file.write(without_keys(note))
            file.flush()
            right = answers(path)
            start = time.monotonic()
            got = answers(path, file.name)
        seconds = time.monotonic() - start
        names = {**right, **got}
        differs = [name for name in names if right.get(name) != got.get(name)]
        different += bool(differs)
        verdict = f"other: {', '.join(differs)} {got.get('error', '')}"
        print(f"{path}: {verdict if differs else 'same'} ({seconds:.2f} s)", flush=True)
    print(f"{len(args.cores)} cores, {different} say something else")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
