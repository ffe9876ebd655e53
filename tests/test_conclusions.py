# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The sentences at the top of ``show`` and ``check``: what they say of HVO is what the
description of the machine says, and what they say of damage is what was changed.
"""

import json
from pathlib import Path
import re

import pytest

from drgn_hvo.audit.rules import RULE_BY_ID
from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.commands.conclusions import check_conclusions, show_conclusions
from drgn_hvo.commands.show import show_document
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.damage.faults import FAULTS, make_machine
from drgn_hvo.synth.described.generations import GENERATIONS
from tests.command_support import run
from tests.synth_support import ALL, describe

SAMPLES = Path(__file__).parents[1] / "sample_vmcores"

# Words that only somebody knows who knows vmemmap.
JARGON = re.compile(r"\b(slices?|frames?|folios?|tails?|vmemmap|PTEs?)\b")

FIRST = {
    "shared-7.3": "HVO is built and on.",
    "shared-7.3-off": "HVO is built, but off.",
    "plain-7.2": "This kernel was built without HVO.",
    "s390x": "This kernel was built without HVO.",
    "fake-head-6.1": "HVO is built and on.",
    "5.15": "HVO is built and on.",
    "debian-6.1": "HVO is built and on.",
    "debian-7.2": "HVO is built and on.",
}


def printed(command, name, *options):
    result = run(command, SAMPLES / f"{name}.kdump", *options)
    assert result.returncode in (0, 1, 3), result.stderr
    return result.stdout


def check_plain(sentences):
    """No sentence needs more than everyday words, but those that give the detail."""
    for sentence in sentences:
        if not sentence.startswith(("In detail: ", "Of the others", "This is a known")):
            assert not JARGON.search(sentence), sentence
        assert sentence.endswith("."), sentence


@pytest.mark.parametrize(("name", "first"), FIRST.items())
@pytest.mark.parametrize("command", ["show", "check"])
def test_whether_hvo_is_there(command, name, first):
    document = json.loads(printed(command, name, "--json"))
    assert document["conclusions"][0] == first
    check_plain(document["conclusions"])
    text = printed(command, name)
    for sentence in document["conclusions"]:
        assert sentence in text


def test_what_is_saved():
    """As /proc/meminfo of that guest had it, 64 huge pages of 2 MiB, 446 pages less."""
    sentences = json.loads(printed("show", "debian-7.2", "--json"))["conclusions"]
    assert sentences[1].startswith("64 of 64 huge pages are optimized")
    assert sentences[1].endswith(f"which saves {446 * 4 / 1024:.1f} MiB.")


@pytest.mark.parametrize("generation", ALL)
def test_healthy_machines_are_healthy(generation):
    machine, _ = make_machine(describe(generation))
    document = check_document(hvo_of(program(machine)), "core", CheckScope())
    sentences = document["conclusions"]
    assert sentences[1].startswith("Healthy: ")
    assert len(sentences) == 2
    check_plain(sentences)


def bits(applied):
    """How many bits of the word that was changed are not what they were."""
    ((change, old),) = applied.changes
    old, new = (int.from_bytes(word, "little") for word in (old, change.new))
    return bin(old ^ new).count("1")


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.rule], ids=lambda f: f.name)
def test_damaged_machines_are_not(fault):
    generation = next(one.name for one in GENERATIONS if fault.possible(one))
    machine, (applied,) = make_machine(describe(generation), [fault.name])
    scope = CheckScope(deep=RULE_BY_ID[fault.rule].deep)
    document = check_document(hvo_of(program(machine)), "core", scope)
    sentences = document["conclusions"]
    check_plain(sentences)
    text = "\n".join(sentences)
    assert "Healthy" not in text
    is_error = any(f["severity"] == "error" for f in document["findings"])
    assert ("Not healthy" in text) == is_error
    assert ("No damage" in text) == (not is_error)
    root = document["findings"][0]
    assert f"(rule {fault.rule})" in text
    assert sum(sentence.startswith("Next: ") for sentence in sentences) == 1
    assert sentences[-1].startswith("Next: ")
    # How the word differs is what was done to it, where one word is what was done.
    if len(applied.changes) == 1 and (root["difference"] or "") == "one bit differs":
        assert bits(applied) == 1
    if (
        len(applied.changes) == 1
        and (root["difference"] or "") == "the whole word differs"
    ):
        assert bits(applied) > 3


def test_a_known_defect_is_the_kernels_fault():
    text = printed("check", "debian-6.12-restored")
    assert "a known defect of the kernel, restored-fake-heads" in text
    assert "the memory of every huge page that is freed is lost" in text


def test_one_bit_alone_is_for_a_test_of_memory():
    sentences = json.loads(printed("check", "shared-7.3-tail-bit-cleared", "--json"))
    text = "\n".join(sentences["conclusions"])
    assert "One bit differs; suspect memory that failed" in text
    assert "Next: test the memory" in text


def test_evidence_is_printed_when_it_is_asked_for():
    for command, name, lines in (
        ("show", "debian-7.2",
         ["- vmemmap_optimize_enabled is 1", "- types: ", "- data: "]),
        ("check", "shared-7.3-tail-bit-cleared",
         ["How that was decided", "#0 breaks shared-tail-info", "0x1 differs",
          "init_compound_tail()"]),
    ):  # fmt: skip
        without, with_it = printed(command, name), printed(command, name, "--evidence")
        for line in lines:
            assert line not in without
            assert line in with_it


def test_what_is_not_known_is_said():
    """Unknown is not off, not healthy, and not 0."""
    machine, _ = make_machine(describe("shared-7.3"))
    hvo = hvo_of(program(machine))
    shown = show_document(hvo, "core", folios=False)
    shown["hvo_built"] = shown["hvo_enabled"] = None
    for hstate in shown["hstates"] or ():
        hstate["nodes"][0]["optimized"] = None
    text = "\n".join(show_conclusions(shown, 1))
    assert "Whether this kernel was built with HVO is not known." in text
    assert "How many of its huge pages are optimized is not known." in text
    assert "Not healthy: 1 list of huge pages broken." in text
    shown["hstates"] = None
    assert "Of its huge pages nothing is known." in show_conclusions(shown, 0)
    checked = check_document(hvo, "core", CheckScope())
    checked["complete"] = False
    text = "\n".join(check_conclusions(checked))
    assert "whether it is healthy is not known" in text
    assert "Healthy" not in text


def test_evidence_of_a_page():
    """What each source says, and the rule that was broken with who makes it hold."""
    for name, pfn, words in (
        ("debian-7.2", 7300, ["By word ", "By tables ", "By lists "]),
        (
            "shared-7.3-pte-writable",
            4096,
            [
                "vmemmap-tail-writable: ",
                "the kernel makes it so in vmemmap_remap_pte()",
            ],
        ),
    ):
        core = SAMPLES / f"{name}.kdump"
        without = run("page", core, pfn).stdout
        with_it = run("page", core, pfn, "--evidence").stdout
        assert with_it.startswith(without)
        for word in words:
            assert word in with_it[len(without) :]
    log = SAMPLES / "debian-7.1-boot-oops.txt"
    refused = run("page", core, "--oops", log, "--evidence")
    assert refused.returncode == 2
    assert "--evidence needs PAGE" in refused.stderr
