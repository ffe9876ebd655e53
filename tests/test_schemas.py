# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The JSON schemas that we ship say the same as the types that mypy holds the reports to,
key by key; and documents have no key that their schema does not know.
"""

import json
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import jsonschema
import pytest

from drgn_hvo.audit.page_faults import VERDICTS
from drgn_hvo.commands import (
    catalogue_reports,
    diff_reports,
    holder_reports,
    log_reports,
    reports,
    single_page_reports,
)
from drgn_hvo.commands.schema import load_schema
from drgn_hvo.extract.needs import REASONS
from drgn_hvo.formats.oops_log import FORMS
from drgn_hvo.kernel.bound import ASSUMPTIONS
from drgn_hvo.memmap import tail_arrays
from drgn_hvo.memmap.pools import LIST_NAMES
from tests.command_support import run

SAMPLES = Path(__file__).parents[1] / "sample_vmcores"

#: The reports of each schema. Where there are two, the schema says when it is the
#: second ("if", "then"), and what else there has to be in the first ("else").
REPORTS: dict[str, tuple[Any, ...]] = {
    "show": (reports.ShowReport,),
    "check": (reports.AuditReport, reports.ErrorReport),
    "page": (single_page_reports.PageReport, log_reports.OopsReport),
    "oops": (log_reports.OopsReport,),
    "progress": (reports.ProgressReport,),
    "map": (single_page_reports.MapReport,),
    "who": (holder_reports.WhoReport,),
    "sharers": (holder_reports.SharersReport,),
    "diff": (diff_reports.DiffReport,),
    "heads": (reports.HeadsReport,),
    "extract": (reports.ExtractReport,),
    "synth": (catalogue_reports.SynthReport,),
    "faults": (catalogue_reports.FaultsReport,),
    "rules": (catalogue_reports.RulesReport,),
    "defects": (catalogue_reports.DefectsReport,),
}

#: Strings of which a table of the program has all values, and the schema, too.
TABLES = {
    "show.dump.format": {"elf", "kdump", "flattened"},
    "check.dump.format": {"elf", "kdump", "flattened"},
    "show.struct_page.member": {"compound_head", "compound_info"},
    "show.encoding.kind": ASSUMPTIONS["encoding"],
    "show.tail_layout.kind": ASSUMPTIONS["tail_layout"],
    "show.tail_layout.where": {owner.struct for owner in tail_arrays._OWNERS},
    "show.tail_layout.element": {one.name for one in tail_arrays._ELEMENTS},
    "show.folios[].list": {name for name in LIST_NAMES if name},
    "check.findings[].severity": {"error", "warning"},
    "page.pages[].folio.list": {name for name in LIST_NAMES if name},
    "page.pages[].covering_folio.list": {name for name in LIST_NAMES if name},
    "page.pages[].findings[].severity": {"error", "warning"},
    "page.oopses[].entry.level": {"PGD", "P4D", "PUD", "PMD", "PTE"},
    "page.oopses[].verdict": {verdict.name for verdict in VERDICTS},
    # The others begin with a dump of a page or a line of hugetlb.
    "page.reports[].form": {
        *(form.name for form in FORMS),
        "page-dump",
        "vm-bug-on",
        "hugetlb-warning",
    },
    "page.reports[].dump.encoding": ASSUMPTIONS["encoding"],
    "extract.kept[].what": set(REASONS),
    "rules.rules[].severity": {"error", "warning"},
}
# page --oops prints what oops does.
TABLES |= {
    path.replace("page.", "oops.", 1): TABLES[path]
    for path in TABLES
    if path.startswith("page.")
}

#: Names of which later versions have more: scripts must not count on these.
OPEN = {
    "check.rules[].id",
    "check.findings[].rule",
    "oops.pages[].findings[].rule",
    "page.pages[].findings[].rule",
    "rules.rules[].id",
}

#: Keys that are added where a result is printed, if its target could be opened.
PRINTED = {"dump", "identity"}

#: What a schema says beyond types.
BEYOND = {"$schema", "$id", "title", "description", "minimum", "if", "then", "else"}

SIMPLE = {str: "string", int: "integer", float: "number", bool: "boolean"}


def with_null(expected: dict[str, Any]) -> dict[str, Any]:
    if "enum" in expected:
        return {"enum": expected["enum"] | {None}}
    return {**expected, "type": expected["type"] | {"null"}}


def of_type(hint: Any, path: str) -> dict[str, Any]:
    """The schema that a type stands for."""
    origin, args = get_origin(hint), get_args(hint)
    if hasattr(hint, "__required_keys__"):
        return of_reports((hint,), path)
    if origin is Union:
        (inner,) = (arg for arg in args if arg is not type(None))
        return with_null(of_type(inner, path))
    if origin is Annotated:
        return {**of_type(args[0], path), "pattern": args[1]}
    if origin is Literal and path not in OPEN:
        return {"enum": set(args)}
    if origin is list:
        return {"type": {"array"}, "items": of_type(args[0], f"{path}[]")}
    if origin is dict:
        return {"type": {"object"}, "values": of_type(args[1], f"{path}{{}}")}
    if path in TABLES:
        assert hint is str
        return {"enum": set(TABLES[path] or ())}
    return {"type": {"string" if origin is Literal else SIMPLE[hint]}}


def of_reports(types: tuple[Any, ...], path: str) -> dict[str, Any]:
    """An object that is one of several: what any has, and what each has to have."""
    properties: dict[str, Any] = {}
    for kind in types:
        for key, hint in get_type_hints(kind, include_extras=True).items():
            mine = of_type(hint, f"{path}.{key}")
            if "enum" in mine and "enum" in properties.get(key, {}):
                mine = {"enum": mine["enum"] | properties[key]["enum"]}
            assert properties.get(key, mine) == mine or "enum" in mine
            properties[key] = mine
    required = [
        set(kind.__required_keys__) | (PRINTED & kind.__optional_keys__ - failed)
        for kind, failed in zip(types, (set(), PRINTED))
    ]
    return {"type": {"object"}, "properties": properties, "required": required}


def of_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema in the same form."""
    found = {k: v for k, v in schema.items() if k not in BEYOND}
    if found.pop("additionalProperties", False):
        found["values"] = of_schema(schema["additionalProperties"])
    if "const" in found:
        return {"enum": {found["const"]}}
    if "enum" in found:
        return {"enum": set(found["enum"])}
    kind = found["type"]
    found["type"] = {kind} if isinstance(kind, str) else set(kind)
    if "items" in found:
        found["items"] = of_schema(found["items"])
    if "properties" in found:
        found["properties"] = {k: of_schema(v) for k, v in found["properties"].items()}
        always = set(found.get("required", ()))
        found["required"] = [always]
        if "then" in schema:
            first, second = schema["else"], schema["then"]
            found["required"] = [
                always | set(part.get("required", ())) for part in (first, second)
            ]
    return found


def lines(found: Any, path: str) -> list[str]:
    """One line for each thing that is said, for differences that can be read."""
    if isinstance(found, set):
        return [f"{path}: {one}" for one in found]
    if isinstance(found, list):
        found = dict(enumerate(found))
    if isinstance(found, dict):
        return [line for key in found for line in lines(found[key], f"{path}.{key}")]
    return [f"{path}: {found}"]


@pytest.mark.parametrize("name", REPORTS)
def test_the_schema_says_what_the_types_say(name):
    schema, types = of_schema(load_schema(name)), of_reports(REPORTS[name], name)
    assert set(lines(schema, name)) ^ set(lines(types, name)) == set()
    assert schema == types


def test_there_is_a_schema_of_every_report():
    directory = Path(reports.__file__).with_name("schema")
    shipped = {path.stem for path in directory.glob("*.json")}
    assert shipped == set(REPORTS)


def unknown_keys(value: Any, schema: dict[str, Any], path: str) -> list[str]:
    """Keys of a document that its schema does not name."""
    found = []
    if isinstance(value, dict) and "properties" in schema:
        known = schema["properties"]
        found += [f"{path}.{key}" for key in value if key not in known]
        for key in value.keys() & known.keys():
            found += unknown_keys(value[key], known[key], f"{path}.{key}")
    if isinstance(value, list):
        for one in value:
            found += unknown_keys(one, schema["items"], f"{path}[]")
    return found


CORE = SAMPLES / "shared-7.3.kdump"
DAMAGED = SAMPLES / "shared-7.3-pte-writable.kdump"
OOPS = SAMPLES / "debian-7.1-boot-oops.txt"
COMMANDS: dict[str, tuple[Any, ...]] = {
    "show": ("show", "show", "--folios", CORE),
    "check": ("check", "check", DAMAGED),
    "check-error": ("check", "check", SAMPLES / "README.md"),
    "page": ("page", "page", CORE, "4608"),
    "page-oops": ("page", "page", CORE, "--oops", OOPS),
    "oops": ("oops", "oops", OOPS),
    "map": ("map", "map", CORE, "4608"),
    "map-damaged": ("map", "map", DAMAGED, "4096"),
    "who": ("who", "who", CORE, "4608"),
    "sharers": ("sharers", "sharers", CORE, "32764"),
    "diff": ("diff", "diff", CORE, DAMAGED),
    "diff-instants": ("diff", "diff", *(SAMPLES / "instants" / f"n-7.3-enq-{n}.kdump"
                                        for n in ("080", "083"))),
    "heads": ("heads", "heads", CORE, "-o", "out"),
    "extract": ("extract", "extract", CORE, "-o", "out"),
    "synth": ("synth", "synth", SAMPLES / "shared-7.3.toml", "--fault",
              "pte-writable", "-o", "out"),
    "faults": ("faults", "faults"),
    "rules": ("rules", "rules"),
    "defects": ("defects", "defects"),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_documents_are_what_their_schema_says(command, tmp_path):
    name, *arguments = COMMANDS[command]
    words = [tmp_path / "out" if word == "out" else word for word in arguments]
    result = run(*words, "--json")
    document = json.loads(result.stdout)
    schema = load_schema(name)
    jsonschema.validate(document, schema)
    assert unknown_keys(document, schema, name) == []


def test_each_schema_has_a_name_of_its_own():
    names = [load_schema(name)["$id"] for name in REPORTS]
    assert names == [
        f"https://drgn-hvo.readthedocs.io/schema/1/{name}.json" for name in REPORTS
    ]


def test_progress_is_what_its_schema_says(tmp_path):
    result = run("heads", CORE, "-o", tmp_path / "out", "--progress", "json")
    told = [json.loads(line) for line in result.stderr.splitlines()]
    for line in told:
        jsonschema.validate(line, load_schema("progress"))
        assert unknown_keys(line, load_schema("progress"), "progress") == []
    assert [told[0]["done"], told[-1]["done"]] == [0, told[-1]["total"]]
    assert {line["unit"] for line in told} == {"page"}
