"""Kept values: as if computed each time, whatever has become of the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cnnvis_cli.store.cache import cache_folder, remembered

KEY = {"model": "alexnet", "sizes": (1, 2)}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("cnnvis_cli.store.cache.cache_folder", cache_folder)  # not the tests' own
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return cache_folder()


def made(key: dict[str, Any], value: Any) -> tuple[Any, bool]:
    """Return what is remembered, and whether it was made anew."""
    calls: list[int] = []
    return remembered("test", key, lambda: calls.append(1) or value), bool(calls)  # type: ignore[func-returns-value]


def test_a_value_is_made_once_for_a_key() -> None:
    assert made(KEY, {"rows": [1]}) == ({"rows": [1]}, True)
    assert made(KEY, {"rows": [2]}) == ({"rows": [1]}, False)
    assert made(KEY | {"model": "vgg11"}, 3) == (3, True)


@pytest.mark.parametrize("damage", ["cut", "value", "key", "empty", "a folder"])
def test_what_is_damaged_is_made_again(damage: str, folder: Path) -> None:
    made(KEY, 1)
    (entry,) = folder.iterdir()
    content = entry.read_text()
    entry.unlink()
    if damage == "a folder":
        entry.mkdir()
    else:
        changed = {**json.loads(content), damage: 5}
        entry.write_text({"cut": content[:-3], "empty": ""}.get(damage, json.dumps(changed)))
    assert made(KEY, 1) == (1, True)
    if damage != "a folder":
        assert made(KEY, 1) == (1, False)


def test_without_a_folder_it_is_made_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert [made(KEY, 1), made(KEY, 1)] == [(1, True)] * 2


def test_what_goes_wrong_in_making_goes_wrong_once() -> None:
    calls: list[int] = []

    def fail() -> Any:
        calls.append(1)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        remembered("test", KEY, fail)
    assert calls == [1]
