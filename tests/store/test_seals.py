"""What stands for a file's content, by reading all of it or its seal alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnnvis_cli.digests import file_digest
from cnnvis_cli.store import seals
from cnnvis_cli.store.publish import publishing_hdf5


def written(path: Path, value: int) -> Path:
    with publishing_hdf5(path) as file:
        file.attrs["value"] = value
    return path


def test_a_large_file_is_known_by_its_seal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, same, other = (written(tmp_path / f"{i}.h5", i // 2) for i in range(3))
    assert seals.content_digest(one) == file_digest(one)
    monkeypatch.setattr(seals, "CHECKED_WHEN_READ", 512)
    monkeypatch.setattr(seals, "file_digest", lambda path: pytest.fail(f"{path} is read"))
    assert seals.content_digest(one) == seals.content_digest(same)
    assert seals.content_digest(one) != seals.content_digest(other)


def test_a_large_file_without_a_seal_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seals, "CHECKED_WHEN_READ", 512)
    path = tmp_path / "else"
    path.write_bytes(b"cnnvis sha256" + bytes(2000))
    assert seals.content_digest(path) == file_digest(path)
