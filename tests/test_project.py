# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What is around the program: README and documentation say what the program does, the man
page and completions know every option, and the packages have what they must.
"""

import ast
from collections import Counter
import importlib.util
import json
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

import drgn_hvo
from drgn_hvo.audit.rules import RULES
from drgn_hvo.demo import DEMO_CORE, demo_steps
from drgn_hvo.formats.architectures import ARCHITECTURES
from drgn_hvo.formats.what_ran import WHAT_RAN
from drgn_hvo.synth.damage.faults import FAULTS
from tests.command_support import run
from tools.command_line import arguments, commands
from tools.examples import differs, documents, examples, run_example
from tools.first_commands import commands as first_commands
from tools.shell_files import SHELL_FILES, completion, man_page
from tools.site_pages import SITE_PAGES

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "sample_vmcores"

EXAMPLES = [example for path in documents() for example in examples(path)]


@pytest.mark.parametrize(
    "example", EXAMPLES, ids=lambda one: f"{one.path.name}: {one.command}"
)
def test_examples(example):
    """What documentation shows is what the program prints."""
    assert differs(example, run_example(example)) == "", "run python -m tools.examples"


TESTS = sorted((ROOT / "tests").glob("test_*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_files_of_tests_stand_alone(path):
    """What several of them need is in a module of its own."""
    text = path.read_text()
    assert not re.search(r"^\s*(from|import) (tests)?\.?test_", text, re.MULTILINE)
    assert text.count("\n") < 600


def test_docstrings_say_what_a_thing_is():
    """Before what it takes, gives and raises."""
    silent = [
        f"{path}: {node.name}"
        for room in ("contrib", "drgn_hvo", "tools")
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.ClassDef, ast.FunctionDef))
        and (ast.get_docstring(node) or "").startswith(":")
    ]
    assert silent == []


# What is read and what is made of the same thing of a machine, in rooms that do not
# know each other.
READ_AND_MADE = {"DeviceMemory", "KernelImage"}


def test_a_name_means_one_thing():
    """Each class has a name of its own, also the private ones."""
    named = Counter(
        node.name
        for path in (ROOT / "drgn_hvo").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert {name for name, times in named.items() if times > 1} == READ_AND_MADE


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1000


def test_first_commands():
    """What CI runs, in an environment of its own, is what README begins with."""
    readme = (ROOT / "README.md").read_text()
    first = list(first_commands(readme))
    assert first == re.findall(r"^\$ (.*)$", readme, re.MULTILINE)[: len(first)]
    assert first[0] == "python3 -m venv venv"
    assert "venv/bin/drgn-hvo demo" in first
    assert first[-1].endswith("pytest -n auto")
    with pytest.raises(LookupError, match="no section"):
        list(first_commands(readme.replace("## Test\n", "")))


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        if not link.startswith("generated/"):
            assert (path.parent / link).exists(), link


def test_demo(capsys):
    """Every command that takes a target, on the core that rides in the package."""
    printed = run("demo").stdout
    shown = [step.argv[0] for step in demo_steps("")]
    assert shown == ["show", "check", "page", "map", "heads", "extract"]
    for command in shown:
        assert f"$ drgn-hvo {command} {DEMO_CORE}" in printed
    assert f"{DEMO_CORE}: clean" in printed
    assert DEMO_CORE.read_bytes() == (SAMPLES / DEMO_CORE.name).read_bytes()


def _spellings():
    for name, command in commands().items():
        for argument in arguments(command):
            for option in argument.option_strings:
                yield name, option


def test_man_page_and_completions_know_everything():
    texts = {kind: (ROOT / "share" / f).read_text() for kind, f in SHELL_FILES.items()}
    texts["man"] = re.sub(r"\\f.|\\", "", texts["man"])
    for kind, text in texts.items():
        for command, option in _spellings():
            name = option.lstrip("-") if kind == "fish" else option
            assert command in text
            assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text), (
                f"{kind}: {command} {option}; run python -m tools.shell_files"
            )


@pytest.mark.skipif(
    sys.version_info[:2] not in ((3, 11), (3, 12)),
    reason="argparse words its help in another way in this version of Python",
)
@pytest.mark.parametrize("kind", SHELL_FILES)
def test_shell_files_are_current(kind):
    pytest.importorskip("argparse_manpage" if kind == "man" else "shtab")
    made = man_page() if kind == "man" else completion(kind)
    assert (ROOT / "share" / SHELL_FILES[kind]).read_text() == made, (
        "run python -m tools.shell_files"
    )


def test_man_page_is_well_formed():
    if not shutil.which("groff"):
        pytest.skip("groff is not here")
    path = ROOT / "share" / SHELL_FILES["man"]
    done = subprocess.run(
        ["groff", "-k", "-man", "-Tutf8", "-ww", str(path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    # Lines that cannot be filled are no mistake.
    said = [line for line in done.stderr.splitlines() if "adjust" not in line]
    assert not said
    assert "EXIT STATUS" in re.sub(r".\x08", "", done.stdout)


def test_completion_in_bash():
    pexpect = pytest.importorskip("pexpect")
    if not shutil.which("bash"):
        pytest.skip("bash is not here")
    shell = pexpect.spawn(
        "bash", ["--norc", "--noprofile"], encoding="utf-8", dimensions=(40, 200)
    )
    try:
        shell.sendline("PS1='> '; bind 'set enable-bracketed-paste off'")
        shell.sendline(f"source {ROOT / 'share' / SHELL_FILES['bash']}")
        shell.sendline("echo re''ady")
        shell.expect("ready")
        shell.send("drgn-hvo ch\t --de\t")
        shell.expect("drgn-hvo check", timeout=10)
        shell.expect("--de(ep|bug)?", timeout=10)
    finally:
        shell.close(force=True)


def test_what_was_run_is_one_table():
    """README, --help and the documentation claim the same of each architecture."""
    assert WHAT_RAN.keys() == ARCHITECTURES.keys()
    readme, support = (
        (ROOT / path).read_text() for path in ("README.md", "docs/support.md")
    )
    said = " ".join(run("--help").stdout.split())
    made = "\n".join(SITE_PAGES["architectures"]())
    for key, (name, kernels) in WHAT_RAN.items():
        assert f"\n| {name} | {kernels} |\n" in readme
        assert f"\n| {name} | " in support
        assert f"{name} {kernels}" in said
        assert f"| {key} | {kernels} |" in made


def test_site_has_everything():
    """Each command, option, rule, fault and helper has its place on the site."""
    pages = {name: "\n".join(make()) for name, make in SITE_PAGES.items()}
    for command, option in _spellings():
        assert f"`drgn-hvo {command}`" in pages["cli"]
        assert re.search(rf"`{re.escape(option)}[ `]", pages["cli"])
    rules = (ROOT / "docs" / "rules.md").read_text()
    assert all(f"`{rule.id}`" in rules for rule in RULES)
    assert all(f"`{fault.name}`" in pages["faults"] for fault in FAULTS)
    helpers = {
        module
        for path in (ROOT / "docs" / "helpers").glob("[!i]*.rst")
        for module in re.findall(r"automodule:: ([\w.]+)", path.read_text())
    }
    exported = drgn_hvo.__all__[1:]
    assert helpers == {getattr(drgn_hvo, name).__module__ for name in exported}
    index = (ROOT / "docs" / "index.md").read_text()
    for path in (ROOT / "docs").glob("*.md"):
        assert path.stem == "index" or re.search(rf"^{path.stem}$", index, re.MULTILINE)
    for name in pages:
        assert f"\ngenerated/{name}\n" in index


def _keys(schema):
    """All keys that documents of a schema have, however deep."""
    for name, inner in schema.get("properties", {}).items():
        yield name
        yield from _keys(inner)
    for where in ("items", "additionalProperties"):
        if isinstance(schema.get(where), dict):
            yield from _keys(schema[where])
    for where in ("anyOf", "oneOf", "allOf"):
        for inner in schema.get(where, ()):
            yield from _keys(inner)
    for inner in schema.get("$defs", {}).values():
        yield from _keys(inner)


SCHEMAS = sorted((ROOT / "drgn_hvo" / "commands" / "schema").glob("*.json"))


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.stem)
def test_site_has_all_keys_of_json(path):
    page = "\n".join(SITE_PAGES["json"]())
    keys = set(_keys(json.loads(path.read_text())))
    assert len(keys) > 5
    for key in keys:
        assert re.search(rf"[`.]{re.escape(key)}`", page), key


@pytest.mark.skipif(
    importlib.util.find_spec("sphinx") is None, reason="Sphinx is not here"
)
def test_a_panic_is_one_click_away():
    first = (ROOT / "docs" / "index.md").read_text()
    assert "[You have a panic: do this](oops.md)" in first.partition("include")[0]


DIST = os.environ.get("DRGN_HVO_DIST", "")


@pytest.mark.skipif(not DIST, reason="DRGN_HVO_DIST does not say where packages are")
def test_packages():
    """They have what they must, and do not grow unnoticed."""
    (wheel,) = Path(DIST).glob("*.whl")
    (source,) = Path(DIST).glob("*.tar.gz")
    assert wheel.stat().st_size <= 900_000
    assert source.stat().st_size <= 6_000_000
    names = zipfile.ZipFile(wheel).namelist()
    assert all(
        f".data/data/share/{f}" in "\n".join(names) for f in SHELL_FILES.values()
    )
    assert {name.partition("/")[0].partition("-")[0] for name in names} <= {
        "drgn_hvo",
        f"drgn_hvo-{drgn_hvo.__version__}",
    }
    for path in ("commands/schema/check.json", f"demo/{DEMO_CORE.name}", "py.typed"):
        assert f"drgn_hvo/{path}" in names
    with tarfile.open(source) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    for path in ("CHANGELOG.md", "docs/conf.py", "tests/conftest.py", ".ci/run"):
        assert path in inside
    assert sum(name.startswith("sample_vmcores/") for name in inside) > 40
