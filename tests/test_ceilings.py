# SPDX-License-Identifier: LGPL-2.1-or-later

"""
docs/ceilings.md lists each limit of the code on what a dump can decide, and why.
"""

from pathlib import Path

import pytest

from tools.ceilings import ceilings, ceilings_page

PAGE = Path(__file__).resolve().parents[1] / "docs" / "ceilings.md"


def test_the_page_is_current():
    """``python -m tools.ceilings > docs/ceilings.md`` makes it so."""
    assert PAGE.read_text() == ceilings_page()


@pytest.mark.parametrize("one", ceilings(), ids=lambda one: f"{one.where}:{one.name}")
def test_each_has_its_reason(one):
    assert len(one.why) > 10


def test_they_are_found():
    names = {one.name for one in ceilings()}
    assert {"MAX_SYMBOLS", "MAX_ZONE_NAME", "MAX_PART", "TIMEOUT"} <= names
