"""Scratch arrays leave nothing behind."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest

from cnnvis_cli.errors import StorageError
from cnnvis_cli.store.scratch import scratch


def test_what_is_written_is_read_and_no_file_is_there(tmp_path: Path) -> None:
    array = scratch(tmp_path / "parts", (3, 5, 2))
    array[1] = 7
    assert array.sum() == 70
    assert not (tmp_path / "parts").exists()
    assert array.dtype == np.uint8


def test_other_work_keeps_its_folder(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "other").touch()
    scratch(tmp_path / "parts", (3,))
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["other"]


def test_too_little_room_is_told_at_once(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(StorageError, match=r"cannot keep 2 MB in .*parts"):
            scratch(tmp_path / "parts", (1 << 21,))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "parts").exists()
