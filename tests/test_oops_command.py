# SPDX-License-Identifier: LGPL-2.1-or-later

"""``drgn-hvo oops`` with a log alone."""

import io
import json

import jsonschema
import pytest

from drgn_hvo.commands.schema import load_schema
from tests.command_support import check_refused, run
from tests.log_support import HEAD, bad_page_state


def test_command_without_a_core(tmp_path, monkeypatch):
    log = tmp_path / "dmesg"
    lines = bad_page_state(0x4B40, HEAD, "nonzero mapcount", order=9)
    log.write_text("\n".join(lines))
    shown = run("oops", log)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "restored-fake-heads" in shown.stdout
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(log.read_bytes())))
    again = run("oops", "-")
    assert again.stdout == shown.stdout
    document = json.loads(run("oops", log, "--json").stdout)
    jsonschema.validate(document, load_schema("page"))
    assert document["release"] == "6.12.117+deb12-cloud-amd64"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["no-such-log"], "No such file"),
        (["/dev/null"], "Bad page"),
        (["/"], "directory"),
    ],
)
def test_refused(args, words):
    result = run("oops", *args)
    check_refused(result, words)
