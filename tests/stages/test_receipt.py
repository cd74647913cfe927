"""Receipts: a finished command returns at once, and only where everything is as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import cnnvis_cli.demo
from cnnvis_cli.digests import source_digest
from cnnvis_cli.stages.gallery import layers
from cnnvis_cli.stages.run import receipt
from cnnvis_cli.store.publish import publishing_hdf5

Call = Callable[..., Any]
WEIGHTS = Path(cnnvis_cli.demo.__file__).parent / "demo.safetensors"
CHILD = """
import sys
from cnnvis_cli.cli import _code
code = _code()
print(*sorted({"torch", "h5py", "numpy"} & set(sys.modules)), file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture(autouse=True)
def small(plans: None) -> None:
    """The plans; the bundled network's weights in their own file."""
    Path("own.safetensors").write_bytes(WEIGHTS.read_bytes())


@pytest.fixture
def worked(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """A function that tells how often a command has gone to work since it was last asked."""
    seen: list[str] = []
    watched = receipt._watched

    def note(command: str, *rest: Any) -> Any:
        seen.append(command)
        return watched(command, *rest)

    monkeypatch.setattr(receipt, "_watched", note)

    def count() -> int:
        found = len(seen)
        seen.clear()
        return found

    return count


def receipts(run: Path) -> list[Path]:
    return sorted((run / "receipts").glob("*.json"))


def test_a_finished_command_returns_at_once_and_changes_no_byte(
    cnnvis: Call, snapshot: Call
) -> None:
    first = cnnvis("run demo.toml --run run")
    before = snapshot(Path("run"))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, "run", "demo.toml", "--run", "run"],
        capture_output=True,
        text=True,
        check=True,
    )
    told = set(filter(None, done.stderr.splitlines()))  # warnings; nothing heavy was imported
    assert told <= {line for line in first.err.splitlines() if "answer more" in line}
    assert done.stdout == first.out
    assert snapshot(Path("run")) == before
    assert not list(Path("run").glob(".progress*"))


def test_an_unfinished_command_leaves_no_receipt(cnnvis: Call) -> None:
    cnnvis("optimize -c demo.toml --run run --units 999", code=2)
    assert not receipts(Path("run"))


def replaced() -> None:
    path = Path("images/class0/000.png")
    path.write_bytes(Path("images/class0/002.png").read_bytes())


def touched() -> None:
    os.utime("images/class1/001.png", ns=(10**18, 10**18))


def added() -> None:
    Path("images/class1/new.png").write_bytes(Path("images/class0/002.png").read_bytes())


def removed() -> None:
    Path("images/class0/000.png").unlink()


# A touched image is read and found unchanged; other images belong to another run.
@pytest.mark.parametrize(
    ("change", "code"), [(touched, 0), (replaced, 2), (added, 2), (removed, 2)]
)
def test_a_change_of_the_dataset_is_noticed(
    change: Callable[[], None], code: int, cnnvis: Call, worked: Call
) -> None:
    cnnvis("topk -c demo.toml --run run")
    assert worked() == 1
    cnnvis("topk -c demo.toml --run run")
    assert worked() == 0
    change()
    cnnvis("topk -c demo.toml --run run", code=code)
    assert worked() == 1


def test_a_file_overwritten_in_place_is_noticed_among_thousands(tmp_path: Path) -> None:
    """Its folder's time does not change, and it may be any of them."""
    root = tmp_path / "many"
    for number in range(3000):
        (root / f"{number % 7}").mkdir(exist_ok=True, parents=True)
        (root / f"{number % 7}" / f"{number}.jpg").write_bytes(b"one")
    found = receipt._stamp(root)
    assert found is not None
    assert found[0] == 3000
    for number in range(0, 3000, 97):
        path = root / f"{number % 7}" / f"{number}.jpg"
        folder = path.parent.stat().st_mtime_ns
        path.write_bytes(b"two")
        os.utime(path, ns=(number, number))
        assert path.parent.stat().st_mtime_ns == folder
        now = receipt._stamp(root)
        assert now != found
        found = now


def test_folders_linked_in_a_circle_are_listed_once(tmp_path: Path) -> None:
    root = tmp_path / "circle"
    (root / "deeper").mkdir(parents=True)
    (root / "deeper" / "x.png").write_bytes(b"")
    (root / "deeper" / "back").symlink_to(root)
    (root / "gone.png").symlink_to(root / "nowhere")
    found = receipt._stamp(root)
    assert found is not None
    assert found[0] == 2
    (root / "gone.png").unlink()
    assert receipt._stamp(root) != found


def test_a_file_that_comes_into_a_new_folder_is_noticed(cnnvis: Call, worked: Call) -> None:
    cnnvis("topk -c demo.toml --run run")
    Path("images/class2/deeper").mkdir(parents=True)
    Path("images/class2/deeper/x.png").write_bytes(Path("images/class0/002.png").read_bytes())
    worked()
    cnnvis("topk -c demo.toml --run run", code=2)
    assert worked() == 1


def other_weights() -> None:
    tensors = load_file("own.safetensors")
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] * 2}, "own.safetensors")


def other_names() -> None:
    Path("names.txt").write_text("one\ntwo!\n")


def other_direction() -> None:
    np.save("direction.npy", np.ones((1, 32), np.float32))


def other_start() -> None:
    Path("start.png").write_bytes(Path("images/class1/001.png").read_bytes())


OWN = "optimize -c demo.toml --weights own.safetensors"
TARGETED = "optimize --model demo --layer conv1 --iterations 3 --batch-size 8"


@pytest.mark.parametrize(
    ("line", "change", "code"),
    [
        (OWN, other_weights, 2),  # another network's results
        (f"{OWN} --start start.png", other_start, 2),
        (f"{TARGETED} --direction direction.npy", other_direction, 2),
        ("montage top -c demo.toml --classes names.txt", other_names, 0),
    ],
    ids=["weights", "start", "direction", "classes"],
)
def test_a_change_of_a_file_that_an_option_names_is_noticed(
    line: str, change: Callable[[], None], code: int, cnnvis: Call, worked: Call
) -> None:
    Path("names.txt").write_text("eins\nzwei\n")
    Path("start.png").write_bytes(Path("images/class0/000.png").read_bytes())
    np.save("direction.npy", np.eye(1, 32, dtype=np.float32))
    if line.startswith("montage"):
        for stage in ("topk", "project"):
            cnnvis(f"{stage} -c demo.toml --run run")
    cnnvis(f"{line} --run run")
    worked()
    cnnvis(f"{line} --run run")
    assert worked() == 0
    change()
    cnnvis(f"{line} --run run", code=code)
    assert worked() == 1


def test_an_output_that_is_gone_or_damaged_is_noticed(cnnvis: Call, worked: Call) -> None:
    cnnvis("optimize -c demo.toml --run run")
    path = Path("run/optimized/conv1.h5")
    whole = path.read_bytes()
    path.unlink()
    worked()
    cnnvis("optimize -c demo.toml --run run")
    assert worked() == 1
    assert path.read_bytes() == whole
    cnnvis("optimize -c demo.toml --run run")
    assert worked() == 0
    path.write_bytes(whole[:2000])
    cnnvis("optimize -c demo.toml --run run", code=1)  # named; deleting it is the remedy
    assert worked() == 1
    path.unlink()
    cnnvis("optimize -c demo.toml --run run")
    assert path.read_bytes() == whole


def test_another_option_or_version_has_a_receipt_of_its_own(
    cnnvis: Call, worked: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    cnnvis("optimize -c demo.toml --run run")
    cnnvis("optimize -c demo.toml --run run --units 0-4")
    assert worked() == 2
    # What the second has made is no longer what the first has left: it looks, once.
    for expected in (1, 0):
        cnnvis("optimize -c demo.toml --run run")
        assert worked() == expected
    monkeypatch.setattr(receipt, "__version__", "99.0")
    cnnvis("optimize -c demo.toml --run run")
    assert worked() == 1


def test_other_code_of_the_same_version_works_anew_and_draws_what_has_another_form(
    cnnvis: Call, worked: Call, snapshot: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished gallery is not taken for that of a page whose design has changed."""
    cnnvis("optimize -c demo.toml --run run --units 0-3")
    cnnvis("gallery -c demo.toml --run run")
    (path,) = Path("run/receipts").glob("gallery-*.json")
    before = snapshot(Path("run/gallery"))
    monkeypatch.setattr(receipt, "source_digest", lambda: "other code")
    monkeypatch.setattr(layers, "PAGE_FORM", (*layers.PAGE_FORM, "larger"))
    worked()
    cnnvis("gallery -c demo.toml --run run")
    assert worked() == 1
    after = snapshot(Path("run/gallery"))
    assert after["conv1/layer.js"] != before["conv1/layer.js"]
    assert list(Path("run/receipts").glob("gallery-*.json")) == [path]
    cnnvis("gallery -c demo.toml --run run")
    assert worked() == 0


def test_too_many_unreadable_images_are_said_again(cnnvis: Call, worked: Call) -> None:
    Path("images/class0/broken.png").write_bytes(b"no picture")
    first = cnnvis("topk -c demo.toml --run run", code=3)
    assert worked() == 1
    again = cnnvis("topk -c demo.toml --run run", code=3)
    assert worked() == 0
    assert again == first
    assert "1 of 21 images could not be used" in again.err
    cnnvis("topk -c demo.toml --run run --max-unreadable 0.1")
    assert worked() == 1


@pytest.mark.parametrize(
    "line",
    [
        "optimize -c exact.toml --layer conv1",  # your own code
        "optimize -c demo.toml --shard 1/2",
        "optimize -c demo.toml --scheduler tcp://127.0.0.1:1",
    ],
    ids=["code", "shard", "scheduler"],
)
def test_where_inputs_cannot_be_told_there_is_no_receipt(
    line: str, cnnvis: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "scheduler" in line:  # which need not be there
        monkeypatch.setattr("cnnvis_cli.stages.optimize.stage.optimize", lambda _: None)
    cnnvis(f"{line} --run run")
    cnnvis(f"{line} --run run")
    assert not receipts(Path("run"))


HOSTILE = [  # CODE is that of this version
    b"",
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b"null",
    b"[]",
    b"{}",
    b'{"code": "CODE", "inputs": [], "outputs": {}, "said": []}',
    b'{"code": "CODE", "inputs": {"\\u0000": [0, 0]}, "outputs": {}, "said": []}',
    b'{"code": "CODE", "inputs": {"/nowhere": null}, "outputs": {}, "said": "told"}',
    b'{"code": "CODE", "inputs": {}, "outputs": {}, "said": [1, null]}',
    b'{"code": "CODE", "inputs": {}, "outputs": {}, "said": []}',
    b'{"code": "CODE", "inputs": {}, "outputs": {}, "said": [], "unreadable": {"a": 1}}',
]


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_a_receipt_that_is_none_is_ignored(content: bytes, cnnvis: Call, worked: Call) -> None:
    first = cnnvis("optimize -c demo.toml --run run --units 0")
    (path,) = receipts(Path("run"))
    whole = path.read_bytes()
    path.write_bytes(content.replace(b"CODE", source_digest().encode()))
    worked()
    assert cnnvis("optimize -c demo.toml --run run --units 0") == first
    assert worked() == 1
    assert json.loads(path.read_bytes()) == json.loads(whole)


def test_what_a_receipt_says_cannot_steer_a_terminal(cnnvis: Call, worked: Call) -> None:
    cnnvis("optimize -c demo.toml --run run --units 0")
    (path,) = receipts(Path("run"))
    record = json.loads(path.read_bytes())
    path.write_text(json.dumps(record | {"said": ["\x1b[2Jgone"]}))
    worked()
    told = cnnvis("optimize -c demo.toml --run run --units 0")
    assert worked() == 0
    assert told.out == "\\x1b[2Jgone\n"


def test_a_file_of_the_run_that_another_command_makes_is_none_of_its_inputs(
    cnnvis: Call, worked: Call
) -> None:
    """What is added later leaves a receipt as good as it was."""
    cnnvis("optimize -c demo.toml --run run")
    with publishing_hdf5(Path("run/optimized/other.h5")) as file:
        file.attrs["format"] = "cnnvis/optimized"
    worked()
    cnnvis("optimize -c demo.toml --run run")
    assert worked() == 0
