"""File systems that lack something, and disks that fail for a moment: the command as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reliability.preloaded import Fault, Preloaded, calls

Results = Callable[[Path], dict[str, str]]
OPTIMIZE = "optimize --model demo --layer conv1 --units 0,1 --iterations 2 --workers 0"


HDF5 = """
import sys, h5py
with h5py.File(sys.argv[1], "r") as file:
    file["x"][()]
"""


def test_the_library_reaches_what_hdf5_and_python_call(preloaded: Preloaded) -> None:
    import h5py

    with h5py.File("x.h5", "w") as file:
        file["x"] = list(range(1000))
    log = Path("log")
    straight = Fault(at="none", part="x.h5", log=log)
    assert preloaded.python("-c", HDF5, "x.h5", fault=straight).returncode == 0
    made = [name for name, _, _ in calls(log)]
    assert {"open", "flock", "pread"} <= {*made}
    for call in ("open", "flock", "pread"):
        log.unlink()
        Path("log.count").unlink()
        fault = Fault(call, "ESTALE", made.count(call), part="x.h5", log=log)
        told = preloaded.python("-c", HDF5, "x.h5", fault=fault)
        assert told.returncode, call
        assert "errno 116" in told.stderr.lower() or "errno = 116" in told.stderr, call
        assert [here for _, _, here in calls(log)].count(True) == 1


@pytest.mark.parametrize("how", ["ENOLCK", "EOPNOTSUPP"])
def test_without_locks_the_work_is_done_and_one_line_says_so(
    how: str, preloaded: Preloaded, results: Results
) -> None:
    fault = Fault("flock,fcntl", how)
    told = preloaded.cnnvis(f"{OPTIMIZE} --run r", fault)
    assert told.returncode == 0, told.stderr
    assert told.stderr.count("has no locks") == 1
    told = preloaded.cnnvis("status r", fault)
    assert (told.returncode, told.stderr) == (0, "")
    if how == "ENOLCK":
        for line in ("montage optimized --run r", "gallery --run r", "verify r"):
            told = preloaded.cnnvis(line, fault)
            assert told.returncode == 0, told.stderr
        assert preloaded.cnnvis(f"{OPTIMIZE} --run plain").returncode == 0
        name = "optimized/conv1.h5"
        assert results(Path("r"))[name] == results(Path("plain"))[name]


@pytest.mark.parametrize(("how", "code"), [("EINVAL", 0), ("ENOTSUP", 0), ("EIO", 4)])
def test_a_folder_that_cannot_be_synced(how: str, code: int, preloaded: Preloaded) -> None:
    Path("r").mkdir()
    fault = Fault("fsync", how, prefix="r", folders=True)
    told = preloaded.cnnvis(f"{OPTIMIZE} --run r", fault)
    assert told.returncode == code, told.stderr
    assert Path("r/optimized/conv1.h5").is_file() == (code == 0)


@pytest.mark.parametrize(
    ("call", "how"),
    [("open", "EMFILE"), ("open", "EACCES"), ("read", "ESTALE"), ("read", "EIO")],
)
def test_a_passing_fault_never_advises_to_delete_a_good_result(
    how: str, call: str, preloaded: Preloaded, cnnvis: Callable[..., object]
) -> None:
    cnnvis(f"{OPTIMIZE} --run r")
    told = preloaded.cnnvis("status r", Fault(call, how, part="optimized/conv1.h5"))
    assert told.returncode == 4, told.stderr
    assert "conv1.h5" in told.stderr
    assert "delete" not in told.stderr


def test_a_lock_that_fails_otherwise_is_an_error(preloaded: Preloaded) -> None:
    told = preloaded.cnnvis(f"{OPTIMIZE} --run r", Fault("flock", "EIO"))
    assert told.returncode == 4
    assert len(told.stderr.splitlines()) == 1
    assert ".lock: cannot be locked" in told.stderr
