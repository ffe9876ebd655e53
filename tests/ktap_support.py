# SPDX-License-Identifier: LGPL-2.1-or-later

"""
KTAP, read
----------
"""

import re

__all__ = ("parse_ktap",)


def parse_ktap(text):
    """
    A parser of KTAP (Documentation/dev-tools/ktap.rst): results by nesting, as lists
    of (ok, number, name, directive, subtests).
    """
    lines = text.splitlines()

    def block(depth):
        indent = "  " * depth
        assert lines.pop(0) == f"{indent}KTAP version 1"
        plan = re.fullmatch(rf"{indent}1\.\.(\d+)", lines.pop(0))
        results, subtests = [], []
        while lines and lines[0].startswith(indent):
            if lines[0].startswith(f"{indent}  KTAP"):
                subtests = block(depth + 1)
                continue
            line = lines.pop(0)[len(indent) :]
            if line.startswith("# "):
                continue
            match = re.fullmatch(r"(ok|not ok) (\d+) ([^#]+?)(?: # (\w+.*))?", line)
            assert match, line
            ok, number, name, directive = match.groups()
            results.append((ok == "ok", int(number), name, directive, subtests))
            subtests = []
        assert [result[1] for result in results] == list(range(1, len(results) + 1))
        assert plan
        assert len(results) == int(plan[1])
        return results

    results = block(0)
    assert not lines
    return results
