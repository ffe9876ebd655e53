# SPDX-License-Identifier: LGPL-2.1-or-later

"""What a drgn session gets from having the package installed."""

import contextlib
import importlib.metadata
import io
import json
import os
from pathlib import Path
import pty
import re
import select
import signal
import subprocess
import sys
import textwrap
import time

from drgn.commands import CommandArgumentError, CommandError, run_command
import numpy as np
import pytest

from drgn_hvo.cli import main
import drgn_hvo.commands.in_drgn  # noqa: F401
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.plugin import OFF_SWITCH
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.machine.machine import build_machine
from tests.extract_support import opened
from tests.finders_support import NOWHERE
from tests.synth_support import describe

SAMPLES = Path(__file__).resolve().parents[1] / "sample_vmcores"
CORE = str(SAMPLES / "shared-7.3.kdump")
DAMAGED = str(SAMPLES / "shared-7.3-tail-bit-cleared.kdump")

# A session in which nothing but the entry point loads the plugin.
SESSION = {
    key: value
    for key, value in os.environ.items()
    if key not in ("DRGN_DISABLE_PLUGINS", "DRGN_PLUGINS", OFF_SWITCH)
}
HEAVY = (
    "numpy",
    "construct",
    "tqdm",
    "drgn_hvo.formats.btf",
    "drgn_hvo.formats.kallsyms",
)


def installed():
    """The entry point, if the package is installed as pip does it."""
    for distribution in importlib.metadata.distributions(name="drgn-hvo"):
        for entry in distribution.entry_points:
            if entry.group == "drgn.plugins":
                return entry
    return None


needs_installation = pytest.mark.skipif(
    installed() is None, reason="drgn-hvo is not installed, so drgn cannot load it"
)


def drgn_session(code, *options, env=SESSION):
    """Standard output and error of a drgn process that runs code."""
    done = subprocess.run(
        [sys.executable, "-m", "drgn", *options, "-e", textwrap.dedent(code)],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@needs_installation
def test_installing_is_all_that_is_needed():
    out, err = drgn_session(
        """
        from drgn.commands import run_command
        from drgn.helpers.linux import compound_head, for_each_hstate, page_to_pfn
        print([h.nr_huge_pages.value_() for h in for_each_hstate(prog)])
        run_command(prog, "hvo check")
        """,
        "-c",
        CORE,
    )
    pools = [
        hstate["total"]
        for hstate in json.loads(subprocess_main("show", CORE, "--json"))["hstates"]
    ]
    assert out.splitlines()[0] == str(pools)
    assert ": clean" in out
    assert err.count("BTF") == 1, "said once"


def subprocess_main(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "drgn_hvo", *arguments],
        env=SESSION,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout


@needs_installation
def test_session_that_needs_nothing_pays_nothing():
    code = f"import sys; print([m for m in {HEAVY} if m in sys.modules])"
    out, err = drgn_session(code, "-c", CORE)
    assert out == "[]\n"
    assert "drgn-hvo" not in err


@needs_installation
def test_userspace_is_left_alone():
    out, _ = drgn_session(
        """
        import sys
        print(prog.registered_type_finders() >= {"hvo"})
        ours = "drgn_hvo.kernel.finders", "drgn_hvo.plugin"
        print(*(name in sys.modules for name in ours))
        from drgn.commands import run_command
        run_command(prog, "hvo", onerror=lambda e: print(type(e).__name__))
        """,
        "-p",
        str(os.getpid()),
    )
    assert out == "False\nFalse True\nCommandNotFoundError\n"


@needs_installation
@pytest.mark.parametrize(
    "switch", [{OFF_SWITCH: "1"}, {"DRGN_DISABLE_PLUGINS": "hvo"}], ids=str
)
def test_off_switches(switch):
    out, _ = drgn_session(
        "print('hvo' in prog.registered_type_finders())",
        "-c",
        CORE,
        env={**SESSION, **switch},
    )
    assert out == "False\n"


@needs_installation
def test_core_without_sources_still_opens(tmp_path):
    """drgn asks for types when it starts; a kernel without BTF must not stop it."""
    script = tmp_path / "script.py"
    script.write_text(
        "import drgn\n"
        "from tests.finders_support import kernel, NOWHERE\n"
        "prog = kernel(NOWHERE)\n"
        "try:\n    prog.load_default_debug_info()\n"
        "except drgn.MissingDebugInfoError:\n    pass\n"
        "print('opened')\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**SESSION, "PYTHONPATH": str(SAMPLES.parent)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "opened\n", done.stderr
    assert "kallsyms" in NOWHERE


@pytest.fixture(scope="module")
def prog():
    return opened(CORE)


def ran(prog, command):
    """What a command prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        result = run_command(prog, command)
    return out.getvalue(), result


def folio_pfn(prog):
    """The head of some optimized folio."""
    found = hvo_of(prog).hugetlb
    return int(found.folios.head_pfn[found.optimized_mapping][0])


@pytest.mark.parametrize(
    "command",
    [
        "show",
        "show --folios",
        "show --json --folios",
        "check",
        "check --format json --deep",
        "check --format ktap --rules folio-head,shared-tail-info",
        "page {pfn} pfn:0x1",
        "page --json {pfn}",
        "map {pfn}",
        "map --json {pfn}",
        "show --assume encoding=mask",
    ],
)
@pytest.mark.parametrize("core", [CORE, DAMAGED], ids=["healthy", "damaged"])
def test_same_as_the_console_script(core, command, capsys):
    prog = opened(core)
    verb, *options = command.format(pfn=folio_pfn(prog)).split()
    status = main([verb, core, *options])
    expected = capsys.readouterr().out
    assert expected
    output, result = ran(prog, f"hvo {verb} {' '.join(options)}")
    # How long it took is not the same twice.
    output, expected = (
        re.sub(r"duration_s\W+[\d.]+", "", s) for s in (output, expected)
    )
    assert output == expected
    assert result == (status or None)


def test_heads(prog, tmp_path):
    ours, theirs = tmp_path / "ours.npy", tmp_path / "theirs.npy"
    assert main(["heads", CORE, "-o", str(theirs)]) == 0
    ran(prog, f"hvo heads -o '{ours}'")
    assert np.array_equal(np.load(ours), np.load(theirs))
    with pytest.raises(CommandError, match="is the target itself"):
        ran(prog, f"hvo heads -o {CORE}")


def test_pipes_and_redirection(prog, tmp_path, capfd):
    path = tmp_path / "out"
    run_command(prog, f"hvo show > {path}")
    assert path.read_text() == ran(prog, "hvo show")[0]
    run_command(prog, "hvo show | head -n 1")
    assert re.fullmatch(r"HVO is .*\n", capfd.readouterr().out)


@pytest.mark.parametrize(
    ("command", "error", "message"),
    [
        ("hvo bogus", CommandArgumentError, "bogus"),
        ("hvo page", CommandError, "takes PAGE"),
        ("hvo show --assume x", CommandArgumentError, "KEY=VALUE"),
        ("hvo show --assume x=y", CommandError, "cannot assume"),
        ("hvo page nothing", CommandError, "names no page"),
        ("hvo page pfn:0xffffffffff", CommandError, "out of range"),
        ("hvo check --rules nonsense", CommandError, "there is no rule"),
        ("hvo heads -o /nowhere/at/all", CommandError, "No such file"),
    ],
)
def test_errors_are_drgns(prog, command, error, message):
    with pytest.raises(error, match=message) as caught:
        run_command(prog, command)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", ["hvo --help", "hvo check --help"])
def test_help(prog, command):
    output, result = ran(prog, command)
    assert output.startswith("usage: hvo")
    assert result is None


def test_a_bug_is_called_one(prog, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise KeyError("oops")

    monkeypatch.setattr("drgn_hvo.commands.show.show_document", broken)
    with pytest.raises(
        CommandError, match=r"internal error: KeyError.*bug in drgn-hvo"
    ):
        run_command(prog, "hvo show")
    assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(CommandError):
        run_command(prog, "hvo show --debug")
    assert "Traceback" in capsys.readouterr().err


def test_finders_that_are_turned_off():
    prog = opened(CORE)
    prog.set_enabled_type_finders(
        [name for name in prog.enabled_type_finders() if name != "hvo"]
    )
    output, _ = ran(prog, "hvo show")
    assert "vmcoreinfo" in output
    with pytest.raises(CommandError, match="'hvo' are turned off"):
        run_command(prog, "hvo check")


def test_live_kernel_is_read_anew(monkeypatch):
    machine = build_machine(describe("shared-7.3"))
    live, core = program(machine, is_live=True), program(machine)
    assert hvo_of(core) is hvo_of(core)
    first, second = hvo_of(live), hvo_of(live)
    assert first is not second
    assert first.kernel is second.kernel
    assert first.hugetlb is not second.hugetlb
    assert first.layout is second.layout, "which no running kernel changes"


def read_until(fd, pattern, seconds):
    """Terminal output up to a pattern, or as far as it came in time."""
    text, end = "", time.monotonic() + seconds
    while not re.search(pattern, text):
        ready, _, _ = select.select([fd], [], [], max(0, end - time.monotonic()))
        if not ready:
            break
        text += os.read(fd, 65536).decode(errors="replace")
    return text


def type_until(fd, keys, pattern):
    """Type until the answer comes: what is typed too early can be lost."""
    text = ""
    for _ in range(10):
        os.write(fd, keys)
        text += read_until(fd, pattern, 6)
        if re.search(pattern, text):
            return
    raise AssertionError(f"no {pattern!r} in {text!r}")


@needs_installation
def test_in_a_terminal():
    """What a user sees who types at drgn's prompt, Ctrl-C included."""
    pid, fd = pty.fork()
    if pid == 0:
        env = {**SESSION, "TERM": "dumb", "PYTHON_BASIC_REPL": "1"}
        arguments = [sys.executable, "-m", "drgn", "-c", DAMAGED]
        os.execvpe(sys.executable, arguments, env)
    try:
        assert read_until(fd, r">>> $", 90).endswith(">>> ")
        type_until(fd, b"%hvo check | grep -c ^0.*shared-tail-info\r", r"\r\n1\r\n")
        type_until(fd, b"%hvo page nothing\r", "drgn: error: 'nothing' names no page")
        type_until(fd, b"\x03", "KeyboardInterrupt")
        type_until(fd, b"%hvo show\r", "Kernel ")
    finally:
        os.kill(pid, signal.SIGHUP)
        os.close(fd)
        os.waitpid(pid, 0)
