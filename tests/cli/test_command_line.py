"""The command line from outside: exit codes, one line on stderr, and examples that work."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import pytest
import torch

import cnnvis_cli.cli
import cnnvis_cli.demo
from cnnvis_cli.cli import COMMANDS, _code, cli
from cnnvis_cli.cli.grouped import GROUPS_OF_OPTIONS
from cnnvis_cli.store import lock
from cnnvis_cli.store.run import Run

WEIGHTS = Path(cnnvis_cli.demo.__file__).parent / "demo.safetensors"
EXACT = "--model tinynet:exact --trust-code --config exact.toml --device cpu"
SETTINGS = """
workers = 0
batch-size = 4
preprocessing = {resize = 32, crop = 32, mean = [120, 110, 100], std = [1, 1, 1]}
optimize = {style = "3", iterations = 3, step = 1}
"""


class Told(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Told]


@pytest.fixture
def cnnvis(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    photographs: Callable[..., Path],
) -> Call:
    """The command, in a folder with a configuration, two small datasets and bad files."""
    Path("exact.toml").write_text(SETTINGS)
    photographs(Path("images"), 6)
    photographs(Path("broken"), 4)
    for number in range(2):
        Path(f"broken/class0/{number:03d}.png").write_bytes(b"no picture")
    Path("empty").mkdir()
    Path("images.tar.gz").write_bytes(b"\x1f\x8b")
    Path("broken.tar").write_bytes(b"no tar" * 300)
    Path("nothing.txt").write_text("a.jpg 1\nb.jpg 2\n")
    Path("foreign").mkdir()
    Path("foreign/thesis.txt").write_text("years of work")
    Path("wrong.toml").write_text("[topk]\nkk = 3\n")
    Path("typed.toml").write_text("[topk]\nk = 'three'\n")
    Path("not.toml").write_text("k = = 3")
    Path("text.pth").write_text("no weights")
    Path("text.safetensors").write_text("no weights")
    with Path("code.pth").open("wb") as file:
        pickle.dump(os.getcwd, file)
    torch.save(torch.nn.Linear(2, 2), "module.pth")

    def call(line: str) -> Told:
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        capfd.readouterr()
        code = _code()
        return Told(code, *capfd.readouterr())

    return call


WRONG = {
    # a command line, and what its message must contain
    "no command": ("cnnvis optimise", "optimise"),
    "option": ("cnnvis layers --modle demo", "--model"),
    "no model": ("cnnvis optimize", "--model"),
    "model": ("cnnvis layers --model alexnett", "alexnet"),
    "module": ("cnnvis layers --model nowhere:net --trust-code", "nowhere"),
    "function": ("cnnvis layers --model tinynet:nothing --trust-code", "nothing"),
    "string": ("cnnvis optimize --model tinynet:not_a_network --trust-code", "not a network"),
    "untrusted": ("cnnvis layers --model tinynet:exact", "--trust-code"),
    "layer": ("cnnvis optimize --model demo --layer cnv3", "conv3"),
    "unit": ("cnnvis optimize --model demo --layer conv1 --units 0-99", "no unit 99"),
    "units": ("cnnvis optimize --model demo --layer conv1 --units 5-2", "5-2"),
    "style": ("cnnvis optimize --model demo --style 9", "style"),
    "step": ("cnnvis optimize --model demo --layer conv1 --step calibrate", "calibrated"),
    "no step": ("cnnvis optimize --model demo --layer conv1 --step 0.5", "--style 3"),
    "runs": ("cnnvis optimize --model demo --runs 0", "--runs"),
    "iterations": ("cnnvis optimize --model demo --iterations 0", "--iterations"),
    "not a number": ("cnnvis optimize --model demo --runs three", "--runs"),
    "batch": ("cnnvis optimize --model demo --batch-size 0", "--batch-size"),
    "kind": (f"cnnvis montage optimised {EXACT}", "optimized"),
    "tone": ("cnnvis montage optimized --model demo --tone grey", "--tone"),
    "not optimized": (f"cnnvis montage optimized {EXACT}", "optimize"),
    "no topk": (f"cnnvis project {EXACT}", "topk"),
    "weights name": ("cnnvis optimize --model resnet18 -w IMAGENET1K_V2", "IMAGENET1K_V1"),
    "weights missing": ("cnnvis optimize --model demo -w none.pth", "none.pth"),
    "no weights": ("cnnvis optimize --model caffenet", "-w"),
    "other weights": (f"cnnvis optimize {EXACT} -w {WEIGHTS}", "another network"),
    "text as pth": (f"cnnvis optimize {EXACT} -w text.pth", "text.pth"),
    "text as safetensors": (f"cnnvis optimize {EXACT} -w text.safetensors", "text.safetensors"),
    "code in weights": (f"cnnvis optimize {EXACT} -w code.pth", "could run code"),
    "module in weights": (f"cnnvis optimize {EXACT} -w module.pth", "could run code"),
    "config missing": ("cnnvis topk images --config none.toml", "none.toml"),
    "config key": ("cnnvis topk images --model demo --config wrong.toml", "'k'"),
    "config type": ("cnnvis topk images --model demo --config typed.toml", "'three'"),
    "config text": ("cnnvis topk images --model demo --config not.toml", "not.toml"),
    "run missing": ("cnnvis run none.toml", "none.toml"),
    "dataset": (f"cnnvis topk nowhere {EXACT}", "nowhere"),
    "no dataset": (f"cnnvis topk {EXACT}", "topk FOLDER"),
    "empty dataset": (f"cnnvis topk empty {EXACT}", "no images"),
    "foreign folder": (f"cnnvis topk images {EXACT} --run foreign", "foreign"),
    "device": ("cnnvis optimize --model demo --device gpu", "cuda"),
    "workers": (f"cnnvis topk images {EXACT} --workers -1", "--workers"),
    "shard": (f"cnnvis topk images {EXACT} --shard 4/3", "--shard 4/3"),
    "precision": (f"cnnvis topk images {EXACT} --precision tf32", "tf32"),
    "decoder": (f"cnnvis topk images {EXACT} --decode gpu", "--decode gpu"),
    "two kinds of device": (f"cnnvis topk images {EXACT} --device cpu,meta", "--device"),
    "compressed tar": (f"cnnvis topk images.tar.gz {EXACT}", "unpack it"),
    "broken tar": (f"cnnvis topk broken.tar {EXACT}", "broken.tar"),
    "list of nothing": (f"cnnvis topk nothing.txt {EXACT}", "one path per line"),
    "no shards": ("cnnvis merge images --run merged", "holds no shard"),
    "nothing to merge": ("cnnvis merge", "RUNS"),
    "nothing to measure": (f"cnnvis bench topk nowhere {EXACT}", "nowhere"),
    "project method": (f"cnnvis project {EXACT} --method deconf", "deconv"),
    "project start": (f"cnnvis project {EXACT} --start maps", "--start"),
    "project normalisation": (f"cnnvis project {EXACT} --lrn passes", "--lrn"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage_is_one_line_and_exit_2(case: str, cnnvis: Call) -> None:
    line, remedy = WRONG[case]
    told = cnnvis(line)
    assert told.code == 2, told
    assert len(told.err.splitlines()) == 1, told.err
    assert told.err.startswith("cnnvis: ")
    assert remedy in told.err
    assert not told.out
    assert Path("foreign/thesis.txt").read_text() == "years of work"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_device_that_is_not_there_is_never_replaced(device: str, cnnvis: Call) -> None:
    told = cnnvis(f"cnnvis optimize --model demo --device {device}")
    assert (told.code, len(told.err.splitlines())) == (2, 1)
    assert device in told.err


def test_without_a_command_it_helps(cnnvis: Call) -> None:
    told = cnnvis("cnnvis")
    assert (told.code, told.err) == (0, "")
    lines = told.out.splitlines()
    assert any(line.strip().startswith("optimize") for line in lines)


def test_a_run_of_another_network_is_refused(cnnvis: Call) -> None:
    assert cnnvis(f"cnnvis optimize {EXACT} --run run --layer conv1").code == 0
    told = cnnvis("cnnvis optimize --model demo --run run --layer conv1")
    assert (told.code, len(told.err.splitlines())) == (2, 1)
    assert "another plan" in told.err


def test_a_run_of_other_settings_is_refused(cnnvis: Call) -> None:
    assert cnnvis(f"cnnvis topk images {EXACT}").code == 0
    told = cnnvis(f"cnnvis topk images {EXACT} -k 3")
    assert (told.code, len(told.err.splitlines())) == (2, 1)
    assert "another plan" in told.err


def test_shards_are_merged(cnnvis: Call) -> None:
    assert cnnvis(f"cnnvis topk images {EXACT} --run whole --min").code == 0
    for i in (1, 2):
        told = cnnvis(f"cnnvis topk images {EXACT} --run part{i} --shard {i}/2 --min")
        assert told.code == 0, told.err
        assert f"shard {i}/2 is done" in told.out
    told = cnnvis("cnnvis merge part2 --run merged --trust-code")
    assert (told.code, len(told.err.splitlines())) == (1, 1)
    assert "part 0 of 0 to 1 is missing" in told.err
    assert cnnvis("cnnvis merge part2 part1 --run merged --trust-code").code == 0
    assert Path("merged/topk.h5").read_bytes() == Path("whole/topk.h5").read_bytes()
    assert cnnvis(f"cnnvis project {EXACT} --run merged --layer conv1").code == 0


def test_the_bench_prints_json(cnnvis: Call) -> None:
    flags = "--seconds 0.02 --rounds 1 --json --quiet"
    told = cnnvis(f"cnnvis bench topk images {EXACT} {flags}")
    assert told.code == 0, told.err
    assert json.loads(told.out)["images"] == 6


def test_too_many_unreadable_images_are_exit_3(cnnvis: Call) -> None:
    for _ in range(2):
        told = cnnvis(f"cnnvis topk broken {EXACT}")
        assert (told.code, len(told.err.splitlines())) == (3, 1)
        assert "2 of 4" in told.err
    assert cnnvis(f"cnnvis topk broken {EXACT} --max-unreadable 0.5").code == 0


def test_a_place_that_cannot_be_written_is_exit_4(cnnvis: Call) -> None:
    told = cnnvis(f"cnnvis topk images {EXACT} --run /proc/nowhere")
    assert (told.code, len(told.err.splitlines())) == (4, 1)
    assert "/proc/nowhere" in told.err


def test_a_run_that_is_in_use_is_exit_75(cnnvis: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    with Run(Path("run")).lock():
        monkeypatch.setattr(lock, "_open", {})  # as another process would see it
        told = cnnvis(f"cnnvis topk images {EXACT} --run run")
    assert (told.code, len(told.err.splitlines())) == (75, 1)
    assert str(os.getpid()) in told.err
    assert cnnvis(f"cnnvis topk images {EXACT} --run run").code == 0


def test_damage_is_exit_1_and_named(cnnvis: Call) -> None:
    assert cnnvis(f"cnnvis topk images {EXACT} --run run").code == 0
    content = Path("run/topk.h5").read_bytes()
    Path("run/topk.h5").write_bytes(content[: len(content) // 2])
    told = cnnvis(f"cnnvis topk images {EXACT} --run run")
    assert (told.code, len(told.err.splitlines())) == (1, 1)
    assert "run/topk.h5" in told.err


def test_a_changed_image_is_one_line_and_exit_1(cnnvis: Call) -> None:
    assert cnnvis(f"cnnvis topk images {EXACT} --run run").code == 0
    for path in Path("images/class0").iterdir():
        path.write_bytes(Path("images/class0/003.png").read_bytes())
    told = cnnvis(f"cnnvis project {EXACT} --run run")
    assert (told.code, len(told.err.splitlines())) == (1, 1)
    assert "images/" not in told.out
    assert "class0/" in told.err


def test_a_traceback_only_when_asked_for(cnnvis: Call) -> None:
    told = cnnvis("cnnvis optimize --model demo --layer cnv3 -v")
    assert told.code == 2
    assert "Traceback" in told.err
    assert told.err.splitlines()[-1].startswith("cnnvis: ")


def test_later_commands_need_no_model(cnnvis: Call) -> None:
    assert cnnvis("cnnvis optimize --model demo --layer conv1 -u 3 --iterations 2 -r run").code == 0
    told = cnnvis("cnnvis montage optimized --run run --layer conv1 --units 3")
    assert told.code == 0
    assert told.out.strip().endswith("figures/optimized/conv1.png")
    assert Path("run/figures/optimized/conv1.png").is_file()


def test_results_are_on_stdout_and_nothing_else_is_said(cnnvis: Call) -> None:
    told = cnnvis(f"cnnvis topk images {EXACT} --run run")
    assert told.err == ""
    assert "run/topk.h5" in told.out
    log = cnnvis(f"cnnvis topk images {EXACT} --run run --log log.txt")
    assert log.out.strip() in Path("log.txt").read_text()


def test_a_configuration_runs_all_its_stages(cnnvis: Call) -> None:
    whole = SETTINGS.replace("preprocessing", "layer = 'conv1'\npreprocessing", 1)
    names = "model = 'tinynet:exact'\ntrust-code = true\ndataset = 'images'\nrun = 'run'\n"
    Path("whole.toml").write_text(names + whole)
    assert cnnvis("cnnvis run whole.toml").code == 0
    found = {p.relative_to("run").as_posix() for p in Path("run").rglob("*") if p.is_file()}
    assert "gallery/index.html" in found
    assert {name for name in found if not name.startswith(("gallery/", ".lock"))} == {
        "run.json",
        "topk.h5",
        "skipped.tsv",
        "optimized/conv1.h5",
        "projected/conv1.h5",
        "figures/optimized/conv1.png",
        "figures/top/conv1.png",
    }
    before = {p: p.stat().st_mtime_ns for p in Path("run").rglob("*") if p.name != ".lock"}
    assert cnnvis("cnnvis run whole.toml").code == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_a_network_without_a_rule_is_refused_by_name(cnnvis: Call) -> None:
    Path("small.toml").write_text("[preprocessing]\nresize = 64\ncrop = 64\n")
    network = "--model efficientnet_b0 --weights random --config small.toml --run mobile"
    flags = f"{network} --layer conv1 --layer conv2 --device cpu --workers 0"
    assert cnnvis(f"cnnvis topk images {flags}").code == 0
    told = cnnvis(f"cnnvis project {flags} --method guided")
    assert told.code == 2
    assert len(told.err.splitlines()) == 1
    for word in ("efficientnet_b0", "conv2", "silu", "features.0.2", "--method gradient"):
        assert word in told.err
    assert cnnvis(f"cnnvis project {flags} --method gradient").code == 0
    told = cnnvis(f"cnnvis project {flags}")  # nothing was asked for by name
    assert told.code == 0
    assert len(told.err.splitlines()) == 1
    assert "silu" in told.err
    assert "by gradient instead" in told.err


def test_layers_lists_every_layer(cnnvis: Call) -> None:
    told = cnnvis("cnnvis layers --model demo")
    rows = [line.split() for line in told.out.splitlines()]
    assert rows[1][:2] == ["conv1", "features.0"]
    assert [row[0] for row in rows[1:]] == [
        *(f"conv{n}" for n in range(1, 6)),
        *(f"fc{n}" for n in range(6, 9)),
    ]


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_s_help_has_an_example(command: str, cnnvis: Call) -> None:
    told = cnnvis(f"cnnvis {command} --help")
    assert told.code == 0
    assert not told.err
    assert re.search(rf"Example:\s+cnnvis {command}\b", told.out)


def command_of(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


def example(command: str) -> str:
    """Return the example of a command's help."""
    found = re.search(r"Example:\s+(cnnvis [^(\n]*)", command_of(command).help or "")
    assert found
    return found[1]


def test_the_cheap_examples_work(cnnvis: Call) -> None:
    told = cnnvis(example("layers"))
    assert told.code == 0
    assert "features.10" in told.out
    assert cnnvis(example("optimize")).code == 0
    told = cnnvis(example("search"))
    assert told.code == 0, told.err
    assert all(Path(line).is_file() for line in told.out.splitlines())
    told = cnnvis(example("montage"))
    assert told.code == 0, told.err
    assert all(Path(line).is_file() for line in told.out.splitlines())


def test_help_and_usage_errors_do_not_wait_for_torch() -> None:
    program = (
        "import sys\n"
        "from cnnvis_cli.cli import _code\n"
        "for line in (['--help'], ['layers', '--help'], ['layers', '--nothing'], ['nothing']):\n"
        "    sys.argv = ['cnnvis', *line]\n"
        "    _code()\n"
        "heavy = ('torch', 'h5py', 'PIL', 'numpy', 'scipy', 'pydantic')\n"
        "print([m for m in heavy if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_signal_stops_it_and_a_rerun_carries_on(cnnvis: Call) -> None:
    line = (
        "optimize --model demo --layer conv1 --units 0-23 --style 3 --step 1 --batch-size 4 "
        "--iterations 400 --device cpu"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "cnnvis_cli", *line.split(), "--run", "stopped"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 60
    while not list(Path("stopped").rglob("000000-*.h5")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert len(err.splitlines()) == 1
    assert "SIGTERM" in err
    kept = {p: p.stat().st_mtime_ns for p in Path("stopped").rglob("parts/**/*.h5")}
    assert 1 <= len(kept) < 24  # parts of one unit or more
    assert not Path("stopped/optimized/conv1.h5").exists()
    assert cnnvis(f"cnnvis {line} --run stopped").code == 0
    assert cnnvis(f"cnnvis {line} --run straight").code == 0
    one, other = (Path(run, "optimized/conv1.h5") for run in ("stopped", "straight"))
    assert one.read_bytes() == other.read_bytes()


def test_the_help_names_every_command_in_a_line_of_80_columns(cnnvis: Call) -> None:
    told = cnnvis("cnnvis --help")
    lines = told.out[told.out.index("Start:") :].splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("..." in line for line in lines)
    modules = {path.stem for path in Path(cnnvis_cli.cli.__path__[0]).glob("[!_]*.py")}
    commands = modules - {"options", "work", "completing", "grouped"}
    assert set(cnnvis_cli.cli.COMMANDS) == commands
    assert {line.split()[0] for line in lines if line.startswith("  ")} >= commands


def test_a_mistyped_command_is_named_with_the_nearest(cnnvis: Call) -> None:
    told = cnnvis("cnnvis topkk")
    assert told.code == 2
    assert "topkk" in told.err
    assert "'topk'" in told.err


def options_of(command: click.Command) -> list[click.Option]:
    return [each for each in command.params if isinstance(each, click.Option)]


def every_command() -> dict[str, click.Command]:
    """Return the commands and those of groups, by their names."""
    found = {name: command_of(name) for name in COMMANDS}
    bench = found.pop("bench")
    assert isinstance(bench, click.Group)
    return found | {f"bench {name}": each for name, each in bench.commands.items()}


@pytest.mark.parametrize("name", sorted(every_command()))
def test_help_groups_the_options_and_says_what_they_take(name: str, cnnvis: Call) -> None:
    shown = cnnvis(f"cnnvis {name} --help").out
    titles = re.findall(r"^(\w+):$", shown, re.MULTILINE)
    assert titles == [each for each in GROUPS_OF_OPTIONS if each in titles]
    assert "Logging" in titles
    words = [line.split() for line in shown.splitlines() if line.startswith("  -")]
    assert not [line for line in words if {"TEXT", "PATH"} & set(line[:4])]
    for option in options_of(every_command()[name]):
        assert any(option.opts[-1] in line for line in words) != option.hidden, option.name


def test_options_without_effect_are_accepted_and_not_shown() -> None:
    """They are promised to every command; help is about those that mean something."""
    hidden = {
        name: {option.name for option in options_of(command) if option.hidden}
        for name, command in every_command().items()
    }
    assert hidden["montage"] == {"batch_size"}
    assert hidden["gallery"] == {"batch_size", "seed"}
    assert hidden["optimize"] == set()


def test_every_option_of_a_group_exists() -> None:
    known = {option.name for each in every_command().values() for option in options_of(each)}
    for names in GROUPS_OF_OPTIONS.values():
        assert set(names) <= known


@pytest.mark.parametrize("command", ["status", "verify"])
def test_a_run_is_named_as_everywhere(command: str, cnnvis: Call) -> None:
    assert cnnvis("cnnvis optimize --model demo --layer conv1 --units 0 --iterations 1").code == 0
    told = [cnnvis(f"cnnvis {command} {how}") for how in (
        "outputs/demo", "--run outputs/demo", "--model demo"
    )]  # fmt: skip
    assert {each.code for each in told} == {0}
    assert len({each.out for each in told}) == 1
    none = cnnvis(f"cnnvis {command}")
    assert (none.code, "there are outputs/demo" in none.err) == (2, True)
    both = cnnvis(f"cnnvis {command} outputs/demo --model demo")
    assert (both.code, "name the run once" in both.err) == (2, True)
