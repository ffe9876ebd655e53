# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Helpers as users find them
--------------------------

What the package exports, what that costs, and whether it is documented.
"""

import ast
import inspect
import re
import subprocess
import sys

import pytest

import drgn_hvo


def test_exports():
    """One table, what type checkers see, and the modules themselves agree."""
    table = drgn_hvo._HELPERS
    assert list(table) == sorted(table)
    assert drgn_hvo.__all__ == ("__version__", *table)
    assert set(table) <= set(dir(drgn_hvo))
    modules: dict[str, set[str]] = {}
    for name, module in table.items():
        modules.setdefault(module, set()).add(name)
        helper = getattr(drgn_hvo, name)
        assert helper.__module__ == f"drgn_hvo.helpers.{module}"
        assert helper.__doc__
    for module, names in modules.items():
        imported = sys.modules[f"drgn_hvo.helpers.{module}"]
        assert list(imported.__all__) == sorted(names)
    tree = ast.parse(inspect.getsource(drgn_hvo))
    seen = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if (node.module or "").startswith("drgn_hvo.helpers")
    }
    assert seen == {n: f"drgn_hvo.helpers.{module}" for n, module in table.items()}
    with pytest.raises(AttributeError, match="no attribute 'page_cache'"):
        _ = drgn_hvo.page_cache  # type: ignore[attr-defined] # that is what is tested


def test_everything_is_documented():
    """Parameters, errors, and how it stands to the kernel, in drgn's style."""
    for name in drgn_hvo.__all__[1:]:
        helper = getattr(drgn_hvo, name)
        text = inspect.getdoc(helper)
        assert text
        if isinstance(helper, type):
            continue
        documented = re.findall(r"^:param (\w+): ", text, re.MULTILINE)
        assert sorted(documented) == sorted(inspect.signature(helper).parameters)
        returns = inspect.signature(helper).return_annotation
        if returns not in ("bool", "int", "None") and "Snapshot" not in returns:
            assert re.search(r"^:return: ", text, re.MULTILINE), name
        errors = re.findall(r"^:raises (\w+): ", text, re.MULTILINE)
        assert errors
        assert set(errors) <= {"FaultError", "HvoError", "ValidationError"}


def test_importing_the_package_is_cheap():
    code = (
        "import drgn, sys; before = set(sys.modules); import drgn_hvo; "
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert ast.literal_eval(out) == ["drgn_hvo"]
