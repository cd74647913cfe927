"""Files are whole or not there, whatever fails; parts and the run directory know whose they are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cnnvis_cli.arrays import Arrays
from cnnvis_cli.errors import Stopped, StorageError, UsageError
from cnnvis_cli.store.parts import Parts
from cnnvis_cli.store.publish import publish, publishing, publishing_hdf5
from cnnvis_cli.store.run import Run

IDENTITY = {"model": "demo", "weights_sha256": "0" * 64, "preprocessing": {"crop": [8, 8]}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "file.h5"


def names(path: Path) -> list[str]:
    """Return what is in the folder, temporary files included."""
    return sorted(p.name for p in path.parent.iterdir()) if path.parent.exists() else []


def fill(file: h5py.File) -> None:
    file.attrs["format"] = "cnnvis/test"
    group = file.create_group("layers/conv1")
    values = np.random.default_rng(0).normal(size=(40, 50))
    group.create_dataset("a", data=values, chunks=(7, 50), compression="gzip", fletcher32=True)
    group.create_dataset("b", data=np.arange(3))


def test_the_file_appears_when_the_block_ends(path: Path) -> None:
    with publishing(path) as file:
        file.write(b"half")
        assert not path.exists()
    assert path.read_bytes() == b"half"
    assert names(path) == ["file.h5"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, OSError])
def test_nothing_appears_if_the_block_raises(error: type[BaseException], path: Path) -> None:
    def write() -> None:
        with publishing(path) as file:
            file.write(b"half")
            raise error

    expected = StorageError if error is OSError else error
    with pytest.raises(expected):
        write()
    assert names(path) == []
    publish(path, b"old")
    with pytest.raises(expected):
        write()
    assert path.read_bytes() == b"old"
    assert names(path) == ["file.h5"]


@pytest.mark.parametrize("error", [ValueError, RuntimeError, KeyboardInterrupt])
def test_nothing_appears_if_a_block_with_hdf5_raises(
    error: type[BaseException], path: Path
) -> None:
    def write() -> None:
        with publishing_hdf5(path) as file:
            fill(file)
            raise error("mine")

    publish(path, b"old")
    with pytest.raises(error, match="mine"):
        write()
    assert path.read_bytes() == b"old"
    assert names(path) == ["file.h5"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_the_mode_follows_the_umask(umask: int, mode: int, path: Path) -> None:
    before = os.umask(umask)
    try:
        publish(path, b"content")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode


def test_two_writers_never_mix_their_halves(path: Path) -> None:
    with publishing(path) as one, publishing(path) as other:
        one.write(b"1" * 100)
        other.write(b"2" * 10)
    assert path.read_bytes() in (b"1" * 100, b"2" * 10)
    assert names(path) == ["file.h5"]


def test_the_same_content_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "another folder" / "name.h5"
    for target in (path, other):
        with publishing_hdf5(target) as file:
            fill(file)
    assert path.read_bytes() == other.read_bytes()
    with h5py.File(path) as file:
        assert file["layers/conv1/a"].shape == (40, 50)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_is_a_storage_error_and_keeps_the_old_file(
    call: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(path, b"old")

    def fail(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync", fail) if call == "fsync" else (Path, "replace", fail)))
        with pytest.raises(StorageError, match=r"file\.h5.*Input/output error"):
            publish(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(path) == ["file.h5"]


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file/deeper"):
        publish(tmp_path / "file" / "deeper", b"content")


# HDF5 may die of a failing write, so this happens in a process of its own.
FAILING = """
import sys
from contextlib import contextmanager
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from cnnvis_cli.errors import StorageError
from cnnvis_cli.store import publish
from test_publish import fill

class Failing:
    '''Passes everything on until the n-th call of one kind, which fails as on a full disk.'''

    def __init__(self, file, kind, n):
        self.file, self.kind, self.left = file, kind, n

    def __getattr__(self, name):
        action = getattr(self.file, name)
        return self.counted(action) if name == self.kind else action

    def counted(self, action):
        def call(*arguments):
            self.left -= 1
            if self.left < 0:
                raise OSError(28, "No space left on device")
            return action(*arguments)
        return call

original = publish.publishing
folder = Path(sys.argv[1])
kinds = {}
for kind in ("write", "truncate", "flush", "seek"):
    kinds[kind] = 0
    for n in range(kind == "seek", 400):  # the first seek has nothing buffered that could fail
        @contextmanager
        def failing(path):
            with original(path) as file:
                yield Failing(file, kind, n)
        publish.publishing = failing
        path = folder / f"{kind}{n}.h5"
        try:
            with publish.publishing_hdf5(path) as file:
                fill(file)
        except StorageError as error:
            assert "No space left" in str(error), error
            assert not list(folder.iterdir()), list(folder.iterdir())
            kinds[kind] += 1
        else:
            path.unlink()
            break
print(kinds)
"""


def test_a_full_disk_never_crashes_and_leaves_nothing(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", FAILING, str(tmp_path / "full"), here],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    failures: dict[str, int] = json.loads(done.stdout.replace("'", '"'))
    assert failures["write"] > 5, "the file must be written in several pieces"
    assert all(count < 400 for count in failures.values())


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from cnnvis_cli.errors import StorageError
from cnnvis_cli.store.parts import Parts
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
parts = Parts(Path(sys.argv[1]), "plan")
try:
    parts[0] = {"a": np.random.default_rng(0).normal(size=(300, 1000))}
except StorageError as error:
    sys.exit(4)
"""


@pytest.mark.parametrize("limit", [100, 5_000, 1_000_000])
def test_the_kernel_s_own_refusal_is_a_storage_error_too(limit: int, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder), str(limit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (4, ""), done
    assert list(folder.iterdir()) == []


@pytest.fixture
def arrays() -> Arrays:
    random = np.random.default_rng(1)
    return {
        "image": random.normal(size=(4, 5, 3)).astype(np.float16),
        "failures": np.empty(0, np.int64),
        "reasons": np.array([b"why", b"because"]),
    }


def same(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and np.array_equal(one[n], other[n]) for n in one
    )


def test_parts_come_back_as_they_were(tmp_path: Path, arrays: Arrays) -> None:
    parts = Parts(tmp_path / "parts", "plan")
    assert list(parts.pending(3)) == [0, 1, 2]
    parts[1] = arrays
    assert list(parts.pending(3)) == [0, 2]
    assert same(parts[1], arrays)
    with pytest.raises(KeyError):
        parts[0]


def test_a_part_of_another_plan_is_not_done(tmp_path: Path, arrays: Arrays) -> None:
    Parts(tmp_path / "parts", "one plan")[0] = arrays
    other = Parts(tmp_path / "parts", "another plan")
    assert 0 not in other
    with pytest.raises(KeyError):
        other[0]
    other[0] = arrays
    assert 0 in other


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "flipped"])
def test_a_damaged_part_is_set_aside(damage: str, tmp_path: Path, arrays: Arrays) -> None:
    parts = Parts(tmp_path / "parts", "plan")
    arrays["image"] = np.random.default_rng(0).normal(size=(50, 50))
    parts[0] = arrays
    (path,) = (tmp_path / "parts").iterdir()
    content = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        chunk = file["image"].id.get_chunk_info(0).byte_offset
    if damage == "flipped":
        content[chunk + 100] ^= 4
    replaced: dict[str, bytes | bytearray] = {
        "cut": content[: len(content) // 2],
        "empty": b"",
        "text": b"x" * 3000,
    }
    path.write_bytes(replaced.get(damage, content))
    assert list(parts.pending(1)) == [0]
    assert not path.exists()
    parts[0] = arrays
    assert same(parts[0], arrays)


def test_clear_leaves_what_is_not_ours(tmp_path: Path, arrays: Arrays) -> None:
    one, other = (
        Parts(tmp_path / "parts" / "one", "plan"),
        Parts(tmp_path / "parts" / "two", "plan"),
    )
    one[0] = other[0] = arrays
    one.clear()
    assert (0 in one, 0 in other) == (False, True)
    other.clear()
    assert not (tmp_path / "parts").exists()
    assert (tmp_path / "cwd").exists()


def test_the_run_directory_has_one_owner_at_a_time(tmp_path: Path) -> None:
    run = Run(tmp_path / "new" / "run")
    program = (
        "import sys\nfrom pathlib import Path\nfrom cnnvis_cli.store.run import Run\n"
        "with Run(Path(sys.argv[1])).lock():\n    print('held')\n"
    )
    other = [sys.executable, "-c", program, str(run.path)]
    with run.lock(), run.lock():  # it may enter its own again
        found = subprocess.run(other, capture_output=True, text=True, check=False)
        assert f"Stopped: {run.path} is in use by process {os.getpid()} on" in found.stderr
    assert subprocess.run(other, capture_output=True, text=True, check=False).stdout == "held\n"
    assert not run.path.exists()  # nothing has come to be there


def test_a_killed_owner_leaves_no_lock(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom cnnvis_cli.store.run import Run\n"
        "with Run(Path(sys.argv[1])).lock():\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    run = Run(tmp_path / "run")
    with subprocess.Popen(
        [sys.executable, "-c", program, str(run.path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        with pytest.raises(Stopped, match=f"{process.pid}"), run.lock():
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    with run.lock():
        pass


@contextmanager
def owned(path: Path) -> Iterator[Run]:
    run = Run(path)
    with run.lock():
        yield run


def test_a_run_belongs_to_one_network(tmp_path: Path) -> None:
    with owned(tmp_path / "run") as run:
        run.claim(IDENTITY, "DEFAULT")
        record = run.manifest.read_bytes()
        run.claim(IDENTITY, "DEFAULT")
        with pytest.raises(UsageError, match=r"another plan.*model.*demo.*alexnet"):
            run.claim(IDENTITY | {"model": "alexnet"}, None)
        with pytest.raises(UsageError, match=r"weights is .* there"):
            run.claim(IDENTITY | {"weights_sha256": "1" * 64}, None)
        assert run.manifest.read_bytes() == record
    found = json.loads(record)
    assert found["format"] == "cnnvis/run"
    assert {key: found[key] for key in IDENTITY} == IDENTITY


@pytest.mark.parametrize("name", ["thesis.txt", "topk.h5", "figures"])
def test_a_folder_with_other_files_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with owned(tmp_path) as run:
        with pytest.raises(UsageError, match="did not write"):
            run.claim(IDENTITY, None)
        assert not run.manifest.exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "other"}', "\x00"])
def test_another_run_json_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text)
    with owned(tmp_path) as run, pytest.raises(UsageError, match=r"run\.json"):
        run.claim(IDENTITY, None)
    assert (tmp_path / "run.json").read_text() == text


def test_a_note_that_says_the_same_writes_nothing(tmp_path: Path) -> None:
    with owned(tmp_path / "run") as run:
        run.claim(IDENTITY, None)
        run.note("topk", {"seconds": 3})
        before = run.manifest.stat().st_ino
        run.note("topk", {"seconds": 3})
        assert run.manifest.stat().st_ino == before
        run.note("optimize", {"seconds": 4})
        assert run.read()["topk"] == {"seconds": 3}
        assert run.read()["optimize"] == {"seconds": 4}
