# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What we would send to others: each patch is complete, its table says what was done with
it, and that for drgn makes drgn right about every core that we have.
"""

from email.parser import Parser
import importlib
from pathlib import Path
import re
import shutil
import subprocess
import sys

import drgn
from drgn import Object
from drgn.helpers.linux import mm
import pytest

from drgn_hvo.audit.defects import DEFECTS
from drgn_hvo.kernel.finders import install
from drgn_hvo.memmap.hvo import hvo_of
from tests.cores import CORES, open_core

ROOT = Path(__file__).parents[1]
UPSTREAM = ROOT / "contrib" / "upstream"
SAMPLES = ROOT / "sample_vmcores"
PATCHES = sorted(path.name for path in UPSTREAM.glob("*.patch"))

# For which drgn's own helper was seen to be wrong.
WRONG = ("seed-v5", "seed-v6", "mask-6.18-stable")
RIGHT = ("5.15", "fake-head-6.1", "fake-head-6.12", "shared-7.1", "shared-7.3", "next")


@pytest.mark.parametrize("name", PATCHES)
def test_patches_are_complete(name):
    """A subject, a reason, and a diff whose hunks are as long as they say."""
    text = (UPSTREAM / name).read_text()
    message = Parser().parsestr(text.partition("\n")[2])
    assert message["Subject"].startswith("[PATCH")
    reason, _, diff = str(message.get_payload()).partition("\n---\n")
    assert len(reason.split()) > 80
    assert all(len(line) <= 80 for line in reason.splitlines())
    assert "diff --git" in diff
    for hunk in re.split(r"^@@ ", diff, flags=re.MULTILINE)[1:]:
        old, new = re.findall(r"[-+]\d+,?(\d*)", hunk.partition(" @@")[0])
        lines = re.split(r"^diff --git", hunk, flags=re.MULTILINE)[0].split("\n")[1:]
        body = [line for line in lines if line[:1] in (" ", "+", "-")]
        assert sum(line[0] != "+" for line in body) == int(old or 1)
        assert sum(line[0] != "-" for line in body) == int(new or 1)


def test_the_table_has_all():
    """Each patch, each file, and each defect that somebody has to mend."""
    table = (UPSTREAM / "README.md").read_text()
    for path in UPSTREAM.iterdir():
        if path.name != "README.md":
            assert f"`{path.name}`" in table
    for name in (
        "boot-tail-refcount",
        "restored-fake-heads",
        "resv-underflow-pinned",
        "tails-writable-by-design",
    ):
        assert name in DEFECTS
        assert f"`{name}`" in table


@pytest.fixture(scope="module")
def patched(tmp_path_factory):
    """drgn's helpers with our patch."""
    name = "drgn-0.3.0-masks-by-value.patch"
    if drgn.__version__.split("+")[0] != "0.3.0":
        pytest.skip(f"the patch is for drgn 0.3.0, this is {drgn.__version__}")
    if not shutil.which("patch"):
        pytest.skip("patch is not here")
    tree = tmp_path_factory.mktemp("drgn")
    path = tree / "drgn" / "helpers" / "linux" / "mm.py"
    path.parent.mkdir(parents=True)
    shutil.copyfile(mm.__file__, path)
    command = ["patch", "-p1", "-s", "-d", str(tree), "-i", str(UPSTREAM / name)]
    subprocess.run(command, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))
        yield importlib.import_module("mm")
        del sys.modules["mm"]


def _answers(helpers, prog):
    """Whether compound_head() is right, of pages of each huge page."""
    hvo = hvo_of(prog)
    folios = hvo.hugetlb.folios
    assert len(folios)
    right = []
    for head, order in zip(folios.head_pfn[:40].tolist(), folios.order.tolist()):
        step = 1 << max(order - 9, 0)
        for pfn in (head, *(head + i * step for i in (1, 2, 63, 64, 65, 128, 511))):
            address = hvo.vmemmap.page_address(pfn)
            page = Object(prog, "struct page *", address)
            wanted = hvo.vmemmap.page_address(head)
            right.append(helpers.compound_head(page).value_() == wanted)
            assert helpers.PageCompound(page)
            if helpers is not mm:
                assert helpers.PageHead(page) == (pfn == head)
                assert helpers.PageTail(page) == (pfn != head)
    return right


def _program(name):
    prog = drgn.Program()
    prog.set_core_dump(str(SAMPLES / f"{name}.kdump"))
    install(prog)
    return prog


@pytest.mark.parametrize("name", [*WRONG, *RIGHT])
def test_drgn_with_our_patch(name, patched):
    """It answers rightly where drgn does, and where it does not."""
    assert all(_answers(patched, _program(name)))
    assert all(_answers(mm, _program(name))) == (name in RIGHT)


# In seed5-1g-hit the shared tail page was overwritten: there are no tails to resolve.
@pytest.mark.parametrize("name", [name for name in CORES if name != "seed5-1g-hit"])
def test_drgn_with_our_patch_on_real_cores(name, patched):
    prog = open_core(name)
    install(prog)
    assert all(_answers(patched, prog))
