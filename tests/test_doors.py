# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What stands before and behind every command: no encoding, no state of stdout and no
spelling of an option may end in a traceback, or in a status that means a finding.
"""

import json
import os
from pathlib import Path
import subprocess
import sys

import pytest

from drgn_hvo.cli import EXIT_STATUSES
from drgn_hvo.commands.verbs import VERBS
from tests.command_support import COMMAND, run

SAMPLE = Path(__file__).parents[1] / "sample_vmcores" / "shared-7.3.kdump"
WITH_TARGET = [*(verb.name for verb in VERBS), "extract"]
ALL = [*WITH_TARGET, "synth", "oops", "rules", "faults", "defects", "help"]


def in_shell(command, **environment):
    return subprocess.run(
        ["sh", "-c", command, "sh", *COMMAND],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def test_a_short_run_starts_no_threads():
    """NumPy's linear algebra would start, and spin, one for each processor."""
    code = (
        "import os, sys\n"
        "from drgn_hvo.cli import main\n"
        "assert main(['check', sys.argv[1]]) == 0\n"
        "assert 'numpy' in sys.modules\n"
        "print(len(os.listdir('/proc/self/task')))"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS")}
    result = subprocess.run(
        [sys.executable, "-c", code, SAMPLE],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean,
    )
    assert (result.returncode, result.stdout.split()[-1:]) == (0, ["1"])


@pytest.mark.parametrize("command", ALL)
def test_help_on_a_terminal_that_lacks_characters(command):
    result = in_shell(f'"$@" {command} --help', PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: drgn-hvo")


def test_a_result_on_a_terminal_that_lacks_characters():
    result = in_shell(f'"$@" map "{SAMPLE}" 4608', PYTHONIOENCODING="latin-1")
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("redirection", "words"),
    [
        (">&-", "stdout is closed"),
        (">/dev/full", "No space left on device"),
        (">&- 2>&-", ""),
    ],
)
@pytest.mark.parametrize("command", [f'show "{SAMPLE}"', "rules", "--help"])
def test_nowhere_to_print(command, redirection, words):
    result = in_shell(f'"$@" {command} {redirection}')
    assert result.returncode == 2
    assert result.stdout == ""
    assert words in result.stderr
    assert result.stderr.count("\n") == bool(words)


def test_nobody_hears_of_an_error():
    assert in_shell('"$@" show nowhere 2>&-').returncode == 2


@pytest.mark.parametrize(
    "command", ["show nowhere", "show --nonsense", "check --nonsense x"]
)
@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>/dev/full >/dev/full"])
def test_nobody_can_be_told_of_an_error(command, redirection):
    """Python's own status for what it cannot print is that of findings."""
    result = in_shell(f'"$@" {command} {redirection}')
    assert (result.returncode, result.stdout, result.stderr) == (2, "", "")


@pytest.mark.parametrize("command", ["oops -", f'page "{SAMPLE}" --oops -'])
def test_a_log_from_a_stdin_that_is_closed(command):
    result = in_shell(f'"$@" {command} <&-')
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "drgn-hvo: error: standard input is closed\n"


@pytest.mark.parametrize(
    "arguments",
    [("show", "--fol"), ("check", "--dee"), ("extract", "--smal", "-o", "x")],
)
def test_options_are_not_guessed(arguments):
    result = run(*arguments, SAMPLE)
    assert (result.returncode, result.stdout) == (2, "")
    assert "unrecognized" in result.stderr or "required" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", SAMPLE),
        ("check", SAMPLE),
        ("page", SAMPLE, "4608"),
        ("rules",),
        ("faults",),
        ("defects",),
    ],
)
def test_two_spellings_of_json(arguments):
    documents = []
    for spelling in (("--json",), ("--format", "json")):
        result = run(*arguments, *spelling)
        assert (result.returncode, result.stderr) == (0, "")
        documents.append(json.loads(result.stdout))
        # How long it took is not the same twice.
        documents[-1].pop("duration_s", None)
    assert documents[0] == documents[1]


@pytest.mark.parametrize("command", ALL[:-1])
def test_every_command_has_both_spellings(command):
    text = run(command, "--help").stdout
    assert "--json" in text
    assert "--format" in text


@pytest.mark.parametrize("arguments", [(), ("help",), ("--help",)])
def test_help(arguments):
    result = run(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    for status in EXIT_STATUSES:
        assert f"{status}: " in " ".join(result.stdout.split())


def test_help_of_a_command():
    assert run("help", "check").stdout == run("check", "--help").stdout
    assert run("help", "nothing").returncode == 2


def test_as_a_module():
    command = [sys.executable, "-m", "drgn_hvo", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_name_as_long_as_any(tmp_path):
    path = tmp_path / ("n" * 255)
    assert run("heads", SAMPLE, "-o", path).returncode == 0
    assert os.listdir(tmp_path) == [path.name]


def test_an_error_that_quotes_a_megabyte(tmp_path):
    path = tmp_path / "machine.toml"
    path.write_text(f'generation = "{"x" * 1_000_000}"')
    result = run("synth", path, "-o", tmp_path / "core")
    assert result.returncode == 2
    assert "there is no generation" in result.stderr
    assert len(result.stderr) < 6000


def test_a_file_that_is_there_stays(tmp_path):
    path = tmp_path / "heads.npy"
    path.write_text("precious")
    arguments = ("heads", SAMPLE, "--pfns", "0-63", "-o", path)
    refused = run(*arguments)
    assert (refused.returncode, path.read_text()) == (2, "precious")
    assert "--force" in refused.stderr
    assert run(*arguments, "--force").returncode == 0
    assert path.read_bytes().startswith(b"\x93NUMPY")
