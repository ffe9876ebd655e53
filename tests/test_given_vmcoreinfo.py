# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``--vmcoreinfo`` of another kernel, or of another boot of the same one: where the core
says itself what it is, that is told in place of whatever would go wrong later.
"""

import re

import pytest

from drgn_hvo.cli import main
from drgn_hvo.errors import TargetError
from drgn_hvo.kernel.target import open_target
from tests.cores import SAMPLES

NAME = "debian-7.2"


def text_of(name):
    return open_target(str(SAMPLES / f"{name}.kdump"))["VMCOREINFO"].string_()


def other_boot(text):
    """Each address of the kernel image is 2 MiB further up, as KASLR has it."""

    def moved(match):
        return b"%s%x" % (match[1], int(match[2], 16) + (2 << 20))

    found = re.sub(rb"(SYMBOL\(\w+\)=|KERNELOFFSET=)([0-9a-f]+)", moved, text)
    assert found != text
    return found


@pytest.mark.parametrize("name", ["debian-6.12", "shared-7.3", "arm64-4k", "s390x"])
def test_of_another_kernel(name, tmp_path, capsys):
    note = tmp_path / "note"
    note.write_bytes(text_of(name))
    core = str(SAMPLES / f"{NAME}.kdump")
    for verb in (["check", core], ["show", core], ["page", core, "pfn:4096"]):
        assert main([*verb, "--vmcoreinfo", str(note)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "of another kernel, or of another boot, than this core" in said
        assert "OSRELEASE is" in said


def test_of_another_boot(tmp_path):
    note = tmp_path / "note"
    note.write_bytes(other_boot(text_of(NAME)))
    with pytest.raises(TargetError, match=r"KERNELOFFSET is '[0-9a-f]+' in it and"):
        open_target(str(SAMPLES / f"{NAME}.kdump"), vmcoreinfo=str(note))


def test_a_line_that_is_mended_is_taken(tmp_path, capsys):
    """What else would a user give it for?"""
    note = tmp_path / "note"
    note.write_bytes(text_of(NAME).replace(b"CRASHTIME", b"NEW=1\nCRASHTIME"))
    core = str(SAMPLES / f"{NAME}.kdump")
    assert main(["check", core, "--vmcoreinfo", str(note)]) == 0
    note.write_bytes(re.sub(rb"BUILD-ID=\w+", b"BUILD-ID=0123", text_of(NAME)))
    assert main(["check", core, "--vmcoreinfo", str(note)]) == 0
