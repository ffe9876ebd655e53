# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Boot a stock kernel under QEMU with HVO on and a mix of huge pages, and hold drgn-hvo
against what the guest itself says. Needs Debian's qemu-system-x86 and a kernel: the
name of a Debian package (linux-image-*-unsigned), a .deb file, a vmlinuz, or a
directory with one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
import signal
import sys
import tempfile
import time
from typing import NoReturn, Optional

from contrib.vmtest.capture import capture_dump, capture_kdump
from contrib.vmtest.errors import GuestError, MissingError
from contrib.vmtest.guest import Guest, Machine
from contrib.vmtest.initramfs import base_files, crash_files, python_files
from contrib.vmtest.instants import run_instants
from contrib.vmtest.kernels import Kernel, find_kernel
from contrib.vmtest.scenario import (
    BOOT,
    compare,
    guest_pools,
    inspect,
    live_checks,
    make_mix,
    selftest,
)
from drgn_hvo.errors import HvoError

_CONTRIB = Path(__file__).resolve().parents[1]

# Both nodes of the large one have 1 GiB in one piece above the hole below 4 GiB, which
# is also above what the firmware and the image take.
_SMALL = Machine((1024, 1024))
_LARGE = Machine((4096, 3072))

# Scripts that run in the guest.
_SCRIPTS = (
    _CONTRIB / "live_checks.py",
    _CONTRIB / "selftest" / "hvo_selftest.py",
    _CONTRIB / "vmtest" / "churn.sh",
)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="vmtest", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("kernel", metavar="KERNEL")
    parser.add_argument(
        "--gigantic",
        action="store_true",
        help="1 GiB pages from boot, one of them demoted",
    )
    parser.add_argument(
        "--checks",
        metavar="N",
        type=int,
        default=0,
        help="run N live checks inside, while huge pages come and go",
    )
    parser.add_argument(
        "--selftest", action="store_true", help="run contrib/selftest inside"
    )
    parser.add_argument(
        "--instants",
        action="store_true",
        help="stop it between instructions that change huge pages, and audit it",
    )
    parser.add_argument(
        "--dump", metavar="FILE", type=Path, help="capture with dump-guest-memory"
    )
    parser.add_argument(
        "--kdump", metavar="FILE", type=Path, help="crash it, capture with kdump"
    )
    parser.add_argument(
        "--work", metavar="DIR", type=Path, help="keep packages, image and logs here"
    )
    return parser.parse_args()


def _log(line: str) -> None:
    print(f"vmtest: {line}", file=sys.stderr, flush=True)


@contextmanager
def _work(named: Optional[Path]) -> Iterator[Path]:
    if named is not None:
        named.mkdir(parents=True, exist_ok=True)
        yield named
        return
    with tempfile.TemporaryDirectory(prefix="vmtest-") as directory:
        yield Path(directory)


def _image(kernel: Kernel, work: Path, args: argparse.Namespace) -> Path:
    """The guest's files: with Python, if something runs inside."""
    image = base_files(kernel, work)
    if args.checks or args.selftest:
        python_files(image, _SCRIPTS)
    if args.kdump:
        crash_files(image, kernel, work)
    path = work / "initrd"
    image.write(path)
    return path


def _inspect(guest: Guest, args: argparse.Namespace) -> int:
    """From outside, while the guest runs; the number of differences."""
    make_mix(guest, gigantic=args.gigantic, log=_log)
    start = time.monotonic()
    seen = inspect(f"qemu:{guest.qmp_path}")
    wrong = compare(guest_pools(guest), seen.shown)
    for difference in wrong:
        print(f"not ok: {difference}")
    for message in seen.messages:
        print(f"found: {message}")
    saved = seen.shown["saved"]
    print(
        f"{seen.shown['release']}: over QMP in {time.monotonic() - start:.0f} s: "
        f"{seen.checked['checked']['folios']} huge pages, "
        f"{seen.checked['checked']['optimized_folios']} optimized, "
        f"{saved['net_pages']} pages saved; "
        f"{len(wrong)} differences from /sys; check: {seen.verdict}"
    )
    return len(wrong) + seen.unknown


def _run(args: argparse.Namespace) -> int:
    with _work(args.work) as work:
        kernel = find_kernel(args.kernel, work)
        _log(f"{kernel.name}: {kernel.vmlinuz}")
        if args.instants:
            return 1 if run_instants(kernel, work, _log) else 0
        initrd = _image(kernel, work, args)
        crash = " crashkernel=256M" if args.kdump else ""
        boot = BOOT.format(gigantic="0:1,1:1" if args.gigantic else "0")
        failed = 0
        with Guest(
            kernel,
            initrd,
            work,
            append=boot + crash,
            machine=_LARGE if args.gigantic or args.selftest else _SMALL,
            log=_log,
        ) as guest:
            failed += _inspect(guest, args)
            if args.dump:
                print(f"{args.dump}: {capture_dump(guest, args.dump)}")
            if args.checks:
                failed += live_checks(guest, args.checks, _log)
            if args.selftest:
                failed += selftest(guest, _log)
            if args.kdump:
                print(f"{args.kdump}: {capture_kdump(guest, args.kdump, _log)}")
        return 1 if failed else 0


def _stop(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> int:
    """Run what was asked for: 0 as it should be, 1 it is not, 2 it could not be run."""
    signal.signal(signal.SIGTERM, _stop)
    args = _arguments()
    try:
        return _run(args)
    except (GuestError, HvoError, MissingError) as e:
        print(f"vmtest: error: {e}", file=sys.stderr)
        return 2
    except OSError as e:
        print(f"vmtest: error: {e.filename}: {e.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vmtest: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
