"""The interface for notebooks: values and pictures are those of the files, and it makes more."""

from __future__ import annotations

import io
import pydoc
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

import cnnvis_cli
from cnnvis_cli import api as notebook
from cnnvis_cli.api import Run, Unit, begin, open_run
from cnnvis_cli.dataset.decode import write_png
from cnnvis_cli.demo.synthetic import draw
from cnnvis_cli.errors import CnnvisError, Stopped, UsageError
from cnnvis_cli.figure.canvas import read_record
from cnnvis_cli.figure.tone import toned
from cnnvis_cli.store.lock import alone

SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "batch_size": 4,
    "optimize": {"iterations": 3, "step": "1", "style": ["1"], "runs": 2},
}
CLASSES = ("car", "cat", "leaf")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the bundled network: a few images, two layers, three units."""
    folder = tmp_path_factory.mktemp("notebook")
    for name in CLASSES:
        for number in range(2):
            write_png(folder / "images" / name / f"{number}.png", draw(name, 7 + number))
    run = begin("demo", folder / "run", **SETTINGS)
    run.topk(folder / "images", layers=("conv4", "fc8"), k=4)
    run.optimize("conv4", units=[3, 5, 70])
    run.project("conv4", units="3,5")
    return folder / "run"


@pytest.fixture
def run(made: Path) -> Run:
    return open_run(made, **SETTINGS)


@pytest.fixture
def topk(made: Path) -> Iterator[Any]:
    with h5py.File(made / "topk.h5") as file:
        yield file


@pytest.fixture
def unit(run: Run) -> Unit:
    return run.unit("conv4/0005")


def test_a_run_has_the_network_s_layers(run: Run) -> None:
    assert run.model == "demo"
    assert list(run.layers) == list(run) == [*(f"conv{i}" for i in range(1, 6)), *FC]
    conv4 = run["conv4"]
    assert (conv4.kind, conv4.channels, conv4.map) == ("conv", 96, (12, 12))
    assert conv4.receptive_field == (67, 67)
    assert run[conv4.module] is conv4
    assert len(list(conv4)) == len(conv4) == 96
    assert conv4.styles == {"1": (3, 5, 70)}
    assert conv4.methods == {"deconv": (3, 5)}
    assert run["conv5"].styles == run["conv5"].methods == {}
    assert run.dataset is not None
    assert run.dataset.name == "images"


FC = ("fc6", "fc7", "fc8")


def test_a_unit_goes_by_its_name_and_by_its_number(run: Run) -> None:
    assert str(run["conv4/5"]) == str(run["conv4"][5]) == "conv4/0005"
    assert run["conv4/0005"] == run["conv4"][np.int64(5)]
    assert run["conv4"][5] in {run["conv4"][5], run["conv4"][6]}
    assert run["fc8"][4].label == f"4 {run.classes[4]}"
    assert run["conv4"][4].label == "4"


def test_the_strongest_places_are_the_stored_ones(unit: Unit, topk: Any) -> None:
    stored = topk["layers/conv4"]
    assert len(unit.strongest) == 4
    for rank, found in enumerate(unit.strongest):
        image = int(stored["image"][5, rank])
        assert found.path == topk["images/path"].asstr()[image]
        assert found.class_name == Path(found.path).parent.name
        assert found.activation == stored["activation"][5, rank]
        assert list(found.place) == stored["position"][5, rank].tolist()
        assert list(found.box) == stored["box"][5, rank].tolist()


def test_patches_are_cut_out_of_the_images(unit: Unit) -> None:
    """Brute force: every pixel of the box that lies in the image, by its own coordinates."""
    dataset = unit.layer.run.dataset
    assert dataset is not None
    for found, patch in zip(unit.strongest, unit.patches(), strict=True):
        pixels = np.asarray(Image.open(dataset / found.path).convert("RGB"))
        height, width = pixels.shape[:2]
        expected = np.full((67, 67, 3), 128, np.uint8)
        for y in range(67):
            for x in range(67):
                row, column = found.box.top + y, found.box.left + x
                if 0 <= row < height and 0 <= column < width:
                    expected[y, x] = pixels[row, column]
        assert np.array_equal(np.asarray(patch), expected)


def test_optimized_images_begin_with_the_best(unit: Unit, made: Path) -> None:
    with h5py.File(made / "optimized" / "conv4.h5") as file:
        images, values = file["1/image"][1].astype(np.float32), file["1/activation"][1]
    best = int(values.argmax())
    found = unit.optimized("1")
    assert found.shape == (2, 67, 67, 3)
    assert np.array_equal(found, images[[best, 1 - best]])
    assert unit.reached().tolist() == values[[best, 1 - best]].tolist()
    assert np.array_equal(np.asarray(unit.picture()), toned(images[None, [best]], "tile")[0, 0])
    assert unit.picture(scale=2).size == (134, 134)


def test_projections_have_their_scale_undone(unit: Unit, made: Path) -> None:
    with h5py.File(made / "projected" / "conv4.h5") as file:
        values, scale = file["deconv/projection"][5].astype(np.float32), file["deconv/scale"][5]
    found = unit.projections("deconv")
    assert np.array_equal(found, np.stack([v * s for v, s in zip(values, scale, strict=True)]))
    shown = [np.asarray(picture) for picture in unit.projected()]
    assert np.array_equal(shown, list(toned(found[None], "tile")[0]))


def test_statistics_are_the_stored_ones(run: Run, unit: Unit, topk: Any) -> None:
    stored = topk["layers/conv4"]
    for name, values in run["conv4"].stats.items():
        expected = stored[f"stats/{name}"][()]
        assert np.array_equal(values, expected, equal_nan=expected.dtype.kind == "f")
        assert np.array_equal(unit.stats[name], expected[5])
    assert unit.stats["class_name"] == sorted(CLASSES)[unit.stats["class"]]
    assert isinstance(unit.stats["dead"], bool)
    assert np.array_equal(run["conv4"].activation, stored["activation"][()])
    edges, counts = unit.histogram()
    assert len(edges) == len(counts) + 1
    assert np.array_equal(counts, stored["histogram"][5])
    assert counts.sum() == 6 * 8  # places of each image's map


def test_a_unit_shows_itself_as_far_as_it_is_done(run: Run) -> None:
    """Preferred images, patches and projections; without one of them the picture is narrower."""
    pictures = {n: run["conv4"][n]._repr_png_() for n in (5, 70, 6)}
    widths = [Image.open(io.BytesIO(pictures[n] or b"")).width for n in (5, 70, 6)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > widths[1]
    assert run["conv5"][0]._repr_png_() is None  # nothing is known of it: its name will do
    assert run["conv5"][0].portrait() is None
    assert repr(run["conv5"][0]) == "<unit conv5/0000>"
    portrait = run["conv4"][5].portrait(style="1", method="deconv")
    assert portrait is not None
    assert portrait.width == widths[0]


def test_a_run_and_its_layers_are_tables(run: Run) -> None:
    for shown in (run._repr_html_(), run.layers._repr_html_()):  # type: ignore[attr-defined]
        assert shown.count("<tr>") == 9
        assert "<td>1: 3</td><td>deconv: 2</td>" in shown
    assert run["conv4"]._repr_html_().count("<tr>") == 2
    assert "8 layers" in repr(run)


def test_sheets_are_drawn_and_not_kept(run: Run) -> None:
    assert run["conv4"].sheet().height > run["conv4"].sheet(units=[5]).height
    assert run["conv4"].sheet("top", units=5).width > 2 * 67
    assert not (run.path / "figures").exists()
    with pytest.raises(UsageError, match="pages 1 to 1"):
        run["conv4"].sheet(page=2)


def test_looking_changes_nothing_and_waits_for_nobody(run: Run, made: Path, snapshot: Any) -> None:
    before = snapshot(made)
    with alone(made):
        again = open_run(made)
        again["conv4"][5].portrait()
        again["conv4"].sheet()
        before[".lock"] = snapshot(made)[".lock"]
        assert snapshot(made) == before


def test_it_makes_more_of_a_run(made: Path, tmp_path: Path, capfd: Any, run: Run) -> None:
    """It is silent, and existing results are left as they are."""
    mine = begin("demo", tmp_path / "mine", **SETTINGS)
    assert run.dataset is not None
    assert mine.topk(run.dataset, layers=("conv4", "fc8"), k=4) is mine
    assert mine.optimize("conv4", units=[5, 3]) is mine["conv4"]
    first = mine["conv4"][5].optimized()
    assert np.array_equal(first, run["conv4"][5].optimized())
    mine.optimize("conv4", units=70)
    assert mine["conv4"].styles == {"1": (3, 5, 70)}
    assert np.array_equal(mine["conv4"][5].optimized(), first)
    mine.project("conv4", units=range(4), method="guided")
    assert mine["conv4"].methods == {"guided": (0, 1, 2, 3)}
    (figure,) = mine.montage("optimized", layers=["conv4"], units=[3, 5], scale=2)
    assert figure == mine.path / "figures" / "optimized" / "conv4.png"
    assert '"scale": 2' in read_record(figure)["cnnvis"]
    assert capfd.readouterr() == ("", "")
    mine.montage("optimized", layers=["conv4"], quiet=False)
    assert "conv4.png" in capfd.readouterr().out


def test_work_can_be_done_in_any_thread(run: Run) -> None:
    """Only the main one hears signals."""
    caught: list[Any] = []
    thread = threading.Thread(target=lambda: caught.append(run.optimize("conv4", units=[3])))
    thread.start()
    thread.join()
    assert caught == [run["conv4"]]


WRONG: dict[str, tuple[Callable[[Run], Any], str]] = {
    "layer": (lambda run: run["cnv4"], "did you mean 'conv4'"),
    "channel": (lambda run: run["conv4"][96], "it has 0 to 95"),
    "negative": (lambda run: run["conv4"][-1], "no unit -1"),
    "unit": (lambda run: run["conv4/five"], "write it as layer/channel"),
    "not optimized": (lambda run: run["conv4"][6].optimized(), "conv4/0006 is not optimized"),
    "not projected": (lambda run: run["conv4"][70].projected(), "conv4/0070 is not projected"),
    "nothing": (lambda run: run["fc8"][0].picture(), "nothing to show yet"),
    "no topk": (lambda run: run["conv1"].stats, "holds no conv1"),
    "style": (lambda run: run["conv4"][3].picture("9"), "no style '9'"),
    "method": (lambda run: run["conv4"][3].projections("guide"), "no method 'guide'"),
    "kind": (lambda run: run["conv4"].sheet("tops"), "did you mean 'top'"),
    "setting": (lambda run: run.optimize("conv4", stile="1"), "did you mean 'style'"),
    "units": (lambda run: run.optimize("conv4", units=[96]), "conv4 has no unit 96"),
    "other plan": (lambda run: run.optimize("conv4", runs=3), "runs is 2 there, 3 here"),
    "other model": (lambda run: begin("alexnet", run.path, weights="random"), "belongs to another"),
    "no run": (lambda run: open_run(run.path / "figures"), "begin one with"),
    "its own": (lambda run: open_run(run.path, weights="x.pth"), "belongs to the run"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_asked_for_is_an_error_of_the_package(case: str, run: Run) -> None:
    ask, said = WRONG[case]
    with pytest.raises(UsageError, match=said):
        ask(run)


def test_a_run_in_use_cannot_be_worked_on(run: Run) -> None:
    """Another process holds it: here a lock of another open file."""
    code = (
        "from pathlib import Path; from cnnvis_cli.store.lock import alone\n"
        f"with alone(Path({str(run.path)!r})):\n    print('held', flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Stopped, match="in use by process"):
            run.optimize("conv4", units=[1])
        assert run["conv4"][5].patches()  # and yet be looked at
        other.communicate("\n")


def test_images_that_have_moved(run: Run, tmp_path: Path) -> None:
    """They are an error where they are asked for, grey where they are shown, or found again."""
    assert run.dataset is not None
    lost = open_run(run.path, dataset=str(tmp_path))
    with pytest.raises(CnnvisError, match="can no longer be read"):
        lost["conv4"][5].patches()
    assert lost["conv4"][5]._repr_png_() != run["conv4"][5]._repr_png_()
    lost.topk(run.dataset, layers=("conv4", "fc8"), k=4)  # done, but now it says where they are
    assert lost["conv4"][5].patches() == run["conv4"][5].patches()
    moved = tmp_path / "moved"
    moved.symlink_to(run.dataset)
    found = open_run(run.path, dataset=str(moved))
    assert found["conv4"][5]._repr_png_() == run["conv4"][5]._repr_png_()


def test_the_package_opens_runs_and_is_itself_light(made: Path) -> None:
    assert cnnvis_cli.open(made).model == "demo"
    assert cnnvis_cli.begin is begin
    assert {"open", "begin", "__version__"} <= set(dir(cnnvis_cli))
    with pytest.raises(AttributeError, match="opne"):
        _ = cnnvis_cli.opne
    code = "import cnnvis_cli, sys; dir(cnnvis_cli); sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_everything_is_documented() -> None:
    assert "cnnvis_cli.open" in pydoc.render_doc(notebook)
    for name in notebook.__all__:
        thing = getattr(notebook, name)
        assert thing.__doc__
        for attribute, value in vars(thing).items() if isinstance(thing, type) else ():
            if not attribute.startswith("_") and (callable(value) or isinstance(value, property)):
                assert value.__doc__, f"{name}.{attribute}"
