"""What surrounds the work: full disks for the output, an edited run.json, early signals, logs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.network_loading import load_network

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
Cnnvis = Callable[..., Any]
OPTIMIZE = "optimize --model demo --layer conv1 --units 0,1 --iterations 2 --workers 0"


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """Return how a shell's line ended, with `cnnvis` in it."""
    return subprocess.run(
        ["bash", "-c", line.replace("cnnvis", f"{sys.executable} -m cnnvis_cli")],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_results_that_cannot_be_printed_are_an_error(cnnvis: Cnnvis) -> None:
    cnnvis(f"{OPTIMIZE} --run r")
    for line in (
        "layers --model demo",
        "status r --json",
        "verify r --json",
        f"{OPTIMIZE} --run r",
    ):
        told = shell(f"cnnvis {line} > /dev/full")
        assert told.returncode == 4, line
        assert told.stderr == (
            "cnnvis: standard output: cannot be written (No space left on device)\n"
        )


@pytest.mark.parametrize("words", ["--help", "optimize --help", "--version"])
def test_help_that_cannot_be_printed_is_an_error(words: str) -> None:
    told = shell(f"cnnvis {words} > /dev/full")
    assert told.returncode == 4
    assert told.stderr == "cnnvis: standard output: cannot be written (No space left on device)\n"


@pytest.mark.parametrize(
    "line",
    [
        "optimize --model demo --layer conv1 --units 0 --run file",
        "topk images --model demo --run file/below",
        "gallery --run file",
        "status file",
        "verify file",
        "look image.png --model demo --run file",
    ],
)
def test_a_run_that_is_a_file_is_refused(line: str, cnnvis: Cnnvis) -> None:
    Path("file").touch()
    assert "file: is a file, and a run is a folder; choose another --run" in cnnvis(line, 2).err


@pytest.mark.parametrize("line", ["status link", f"{OPTIMIZE} --run link"])
def test_a_run_on_a_disk_that_is_away_is_said_to_be(line: str, cnnvis: Cnnvis) -> None:
    Path("link").symlink_to("away")
    assert "link: leads to a folder that is not there; bring it back" in cnnvis(line, 4).err


def test_a_damaged_run_json_has_a_remedy(cnnvis: Cnnvis) -> None:
    Path("r").mkdir()
    Path("r/run.json").write_text('{"format"')
    told = cnnvis("status r", 2).err
    assert "run.json: is damaged (" in told
    assert "put the file back as cnnvis wrote it" in told


@pytest.mark.parametrize("command", ["look", "saliency", "occlude", "activations"])
def test_an_image_that_cannot_be_used_is_named_with_its_cause(command: str, cnnvis: Cnnvis) -> None:
    Path("broken.jpg").write_text("broken")
    told = cnnvis(f"{command} broken.jpg --model demo --run r -q", 3).err
    assert "(broken.jpg: is no image that can be recognized), more than 1.0%" in told


def test_a_closed_pipe_is_quiet() -> None:
    told = shell("cnnvis layers --model demo | head -1; exit ${PIPESTATUS[0]}")
    assert (told.returncode, told.stderr) == (0, "")


EDITS: dict[str, Callable[[dict[str, Any]], None]] = {
    "states no model": lambda record: record.pop("model"),
    "states no weights_sha256": lambda record: record.pop("weights_sha256"),
    "states no preprocessing": lambda record: record.pop("preprocessing"),
    "model is of": lambda record: record.update(model=7),
    "network.layers is of": lambda record: record["network"].update(layers="conv1"),
    "network.layers[0].alias is of": lambda r: r["network"]["layers"][0].update(alias=None),
    "its network is not as": lambda record: record["network"]["layers"][0].pop("channels"),
    "its network is": lambda record: record["network"].pop("classes"),
    "optimize.arithmetic is of": lambda record: record["optimize"].update(arithmetic=5),
    "optimize.seconds is of": lambda record: record["optimize"].update(seconds="long"),
    "asked.optimize is of": lambda record: record["asked"].update(optimize=[]),
    "weights is of": lambda record: record.update(weights=["a"]),
    "is of version 2, and cnnvis": lambda record: record.update(version=2),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made") / "run.json"


@pytest.mark.parametrize("said", EDITS)
def test_an_edited_run_json_is_refused_in_one_line(said: str, made: Path, cnnvis: Cnnvis) -> None:
    if not made.exists():
        cnnvis(f"{OPTIMIZE} --run {made.parent}")
    record = json.loads(made.read_text())
    EDITS[said](record)
    Path("r/optimized").mkdir(parents=True)
    Path("r/run.json").write_text(json.dumps(record))
    Path("r/optimized/conv1.h5").write_bytes((made.parent / "optimized/conv1.h5").read_bytes())
    told = cnnvis("gallery --run r", code=2)
    assert f"run.json: {said}" in told.err


def catches(process: subprocess.Popen[str], number: int) -> bool:
    """Return whether a process has a handler for a signal, or ignores it; True once it is over."""
    if process.poll() is not None:
        return True
    text = Path(f"/proc/{process.pid}/status").read_text()
    masks = [line.split()[1] for line in text.splitlines() if line.startswith(("SigCgt", "SigIgn"))]
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


@pytest.mark.parametrize(
    ("line", "moments"),
    [("--version", range(0, 140, 7)), ("layers --model demo", range(0, 400, 40))],
)
def test_a_signal_at_any_moment_is_75_or_nothing(line: str, moments: range) -> None:
    """From the moment on that Python has come to cnnvis: loading, working, ending."""
    codes = set()
    for milliseconds in moments:
        with subprocess.Popen(
            [sys.executable, "-m", "cnnvis_cli", *line.split()],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            while not catches(process, signal.SIGTERM):
                time.sleep(0.001)
            time.sleep(milliseconds / 1000)
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=60)
        assert process.returncode in (0, 75), (milliseconds, err)
        said = ["cnnvis: stopped by SIGTERM before it began"] if process.returncode else []
        assert err.splitlines() == said, milliseconds
        codes.add(process.returncode)
    assert 75 in codes


def test_logs_and_output_may_be_in_a_new_run_directory(cnnvis: Cnnvis) -> None:
    Path("r").mkdir()
    Path("r/last-night.log.2").write_text("an older one")
    told = shell(f"cnnvis {OPTIMIZE} --run r --log r/progress > r/results 2> r/errors")
    assert told.returncode == 0, Path("r/errors").read_text()
    assert "conv1.h5" in Path("r/results").read_text()
    assert "conv1.h5" in Path("r/progress").read_text()
    made = Path("r/optimized/conv1.h5").stat().st_mtime_ns
    assert shell(f"cnnvis {OPTIMIZE} --run r --log r/progress -v > r/results").returncode == 0
    assert Path("r/optimized/conv1.h5").stat().st_mtime_ns == made
    assert len(list(Path("r/receipts").iterdir())) == 1


def test_other_files_are_still_foreign(cnnvis: Cnnvis) -> None:
    Path("r").mkdir()
    Path("r/thesis.txt").write_text("years")
    assert "did not write (thesis.txt)" in cnnvis(f"{OPTIMIZE} --run r", code=2).err


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("../log.txt", "a plan's log is a file in its run directory"),
        ("log.txt", "such as r/log.txt"),
        ("r", "a plan's log is a file in its run directory"),
        ("r/run.json", "cnnvis uses run.json itself"),
        ("r/optimized/log.txt", "cnnvis uses optimized itself"),
        ("r/link", "a plan's log is a file in its run directory"),
        ("r/pipe", "r/pipe: is a pipe"),
    ],
)
def test_a_plan_logs_only_in_its_run_directory(log: str, said: str, cnnvis: Cnnvis) -> None:
    Path("r").mkdir()
    Path("keys").write_text("key")
    Path("r/link").symlink_to("../keys")
    os.mkfifo("r/pipe")
    Path("plan.toml").write_text(f'log = "{log}"\nmodel = "demo"\nrun = "r"\n')
    assert said in cnnvis("optimize --config plan.toml", code=2).err
    assert Path("keys").read_text() == "key"
    assert not Path("../log.txt").exists()
    assert not Path("log.txt").exists()


def test_a_plan_logs_in_its_run_directory(cnnvis: Cnnvis) -> None:
    Path("plan.toml").write_text('log = "r/logs/a.txt"\nmodel = "demo"\nrun = "r"\n')
    told = cnnvis(f"{OPTIMIZE} --config plan.toml", code=2)
    assert "did not write (logs)" in told.err
    Path("plan.toml").write_text('log = "s/a.txt"\nmodel = "demo"\nrun = "s"\n')
    cnnvis(f"{OPTIMIZE} --config plan.toml")
    assert "conv1.h5" in Path("s/a.txt").read_text()


def test_status_leaves_a_damaged_part_where_it_is(plans: None, cnnvis: Cnnvis) -> None:
    line = "topk images --model demo --layer conv1 --workers 0 --batch-size 4 --shard 1/2 --run r"
    cnnvis(line)
    part = min(Path("r/parts/topk").glob("*/0*.h5"))
    part.write_bytes(part.read_bytes()[:-5] + b"wrong")
    before = sorted(Path("r").rglob("*"))
    cnnvis("status r")
    assert sorted(Path("r").rglob("*")) == before


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("topk /nope --model resnet18", "dataset /nope: there is no such folder or file"),
        ("topk --model resnet18", "which images?"),
        ("topk . --model resnet18 --layer conv77", "conv77"),
        ("optimize --model resnet18 --layer conv77", "conv77"),
        ("optimize --model resnet18 --layer conv1 --units 9999", "conv1 has no unit 9999"),
        ("search --model resnet18 --layer conv77", "conv77"),
        ("occlude . --model resnet18 --layer conv77", "conv77"),
        ("look . --model resnet18 --layer conv77", "conv77"),
        ("saliency . --model resnet18 --at conv77", "conv77"),
        ("saliency . --model resnet18 --target conv77/3", "conv77"),
        ("montage screen . --model resnet18 --unit conv77/3", "conv77"),
        *(
            (f"{command} nope.jpg --model resnet18", "nope.jpg: there is no such image")
            for command in ("look", "saliency", "occlude", "activations", "montage screen")
        ),
        ("run plan.toml", "dataset /nope: there is no such folder or file"),
    ],
)
def test_what_is_wrong_is_said_before_weights_are_downloaded(
    line: str, said: str, cnnvis: Cnnvis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(Path.cwd()))  # there is nothing, and nothing may come
    Path("plan.toml").write_text('model = "resnet18"\ndataset = "/nope"\n')
    assert said in cnnvis(line, code=2).err
    assert not Path("hub").exists()


@pytest.mark.parametrize("kind", ["line of a list", "link to a class folder", "link to an image"])
def test_what_is_missing_when_a_dataset_is_listed_ends_the_command(
    kind: str, cnnvis: Cnnvis, photographs: Callable[..., Path]
) -> None:
    images, away = photographs(Path("images"), 6, classes=2), Path("away")
    gone = images / "class1"
    dataset = images
    if kind == "line of a list":
        dataset = Path("list.txt")
        dataset.write_text("\n".join(map(str, sorted(images.rglob("*.png")))))
        gone.rename(away)
    else:
        gone = gone if "folder" in kind else min(gone.iterdir())
        gone.rename(away)
        gone.symlink_to(away.absolute())
        away.rename("further")
    line = f"topk {dataset} --model demo --layer conv1 --workers 0 --batch-size 4 --run r"
    told = cnnvis(line, code=4)
    assert f"dataset {dataset}: " in told.err
    assert gone.name in told.err
    assert "bring back what is missing and run again" in told.err
    assert not list(Path("r").rglob("*.h5"))
    if dataset == images:
        Path("further").rename(away)
    else:
        away.rename(gone)
    assert "6 images, 0 skipped" in cnnvis(line).out


def test_another_dataset_or_weights_are_named_and_counted(plans: None, cnnvis: Cnnvis) -> None:
    """A person knows folders and files, not digests."""
    line = "--model demo --layer conv1 --workers 0 --run r"
    cnnvis(f"topk images {line}")
    shutil.copytree("images", "other")
    next(Path("other").rglob("*.png")).unlink()
    count = sum(path.is_file() for path in Path("images").rglob("*"))
    told = cnnvis(f"topk other {line}", code=2).err
    assert f"it is of {count} images of {Path('images').resolve()}" in told
    assert f"there are {count - 1} in {Path('other').resolve()} now" in told
    assert not re.search("[0-9a-f]{20}", told)
    network = load_network(Plan(model="demo"))
    states = {name: value + 1 for name, value in network.module.state_dict().items()}
    torch.save(states, "mine.pth")
    told = cnnvis(f"topk images {line} --weights mine.pth", code=2).err
    assert f'"{Path("mine.pth").resolve()} (' in told
    assert "those that come with it (" in told
    assert not re.search("[0-9a-f]{20}", told)


@pytest.mark.parametrize("name", ["run.json", "topk.h5", "optimized/conv2.h5", "gallery/x.log"])
def test_a_log_never_takes_the_place_of_a_result(name: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "optimized").mkdir(parents=True)
    for kept in ("run.json", "topk.h5", "optimized/conv2.h5"):
        (run / kept).write_bytes(b"{}")
    told = subprocess.run(
        [sys.executable, "-m", "cnnvis_cli", "status", str(run), "--log", str(run / name)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 2
    assert "choose another name" in told.stderr
    assert (run / "topk.h5").read_bytes() == (run / "run.json").read_bytes() == b"{}"
