"""The page about plans says what the settings declare."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.docs.plan_page import PAGE, page
else:
    from plan_page import PAGE, page


@pytest.mark.skipif(not PAGE.is_file(), reason="this is no checkout")
def test_the_page_is_as_the_settings_are() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text, "make page writes it anew"
    assert text.count("| `--precision` |") == 2
