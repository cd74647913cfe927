"""`gallery`: that every unit is in it, that nothing breaks out, and nothing is made twice."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cnnvis_cli.arrays import Pixels
from cnnvis_cli.digests import digest
from cnnvis_cli.errors import Stopped, UsageError
from cnnvis_cli.figure import site, sprites
from cnnvis_cli.histogram import BINS, edges
from cnnvis_cli.measures.unit_facts import histogram_bars, neighbours
from cnnvis_cli.report import Meter, Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.session import open_session
from cnnvis_cli.stages.gallery import layers
from cnnvis_cli.stages.gallery.flows import VERSION_OF_FLOWS, drawn_levels
from cnnvis_cli.stages.gallery.stage import gallery as make_gallery
from cnnvis_cli.verify import verify

Do = Callable[..., None]
Flags = dict[str, Any]
CHANNELS = {"conv1": 6, "conv2": 8, "fc3": 10}
DEAD, CONSTANT = 4, 2  # channels of conv1
HOSTILE = ["<img src=x onerror=alert(1)>", "a\nb\u2028\u202e'\"&amp;"]


@pytest.fixture
def flags(tmp_path: Path, photographs: Callable[..., Path], exact: Flags) -> Flags:
    """Flags of a run about twelve photographs in two classes."""
    folder = photographs(tmp_path / "images", 12, classes=2)
    return exact | {"dataset": str(folder), "run": str(tmp_path / "run")}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run with everything is kept once it is made."""
    return tmp_path_factory.mktemp("kept") / "run"


@pytest.fixture
def ready(do: Do, flags: Flags, kept: Path) -> Flags:
    """Flags of a run that has something of everything."""
    run = Path(flags["run"])
    if not kept.exists():
        do("topk", **flags)
        do("optimize", **flags, optimize__style=("3",), optimize__iterations=3, optimize__step="1",
           optimize__runs=2)  # fmt: skip
        do("project", **flags, project__method=("deconv", "gradient"))
        shutil.copytree(run, kept)
        return flags
    shutil.copytree(kept, run)
    about = json.loads((run / "run.json").read_text())
    about["dataset"]["path"] = flags["dataset"]
    (run / "run.json").write_text(json.dumps(about))
    return flags


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "gallery"


def read(path: Path) -> list[Any]:
    """Return the values that a file of data hands to the page."""
    text = path.read_text("ascii")
    call = re.fullmatch(r"// \w+(?: \w+)?\ngallery\.\w+\((.*)\);\n", text, re.DOTALL)
    assert call, text[:200]
    values: list[Any] = json.loads(f"[{call[1]}]")
    return values


def layer_of(folder: Path, alias: str) -> dict[str, Any]:
    (layer,) = read(folder / alias / "layer.js")
    assert isinstance(layer, dict)
    return layer


def units_of(folder: Path, alias: str) -> list[dict[str, Any]]:
    name, number, units = read(folder / alias / "units_000.js")
    assert (name, number) == (alias, 0)
    return list(units)


def picture(folder: Path, alias: str, unit: int, kind: str, rank: int) -> Pixels:
    """Return one picture, cut out of the file of some units as the page does."""
    layer = layer_of(folder, alias)
    sheet, units = layer["sheet"], layer["units"]
    pane = next(p for p in sheet["panes"] if p["kind"] == kind)
    row = units.index(unit) % sheet["units"]
    first = units[units.index(unit) - row]
    pixels = np.asarray(Image.open(folder / alias / f"{first:04d}.{sheet['suffix']}"))
    together = min(sheet["units"], len(units) - units.index(first))
    assert list(pixels.shape[:2]) == [together * sheet["size"][0], sheet["size"][1]]
    (height, width), left = pane["tile"], rank * pane["cell"][1]
    top = row * sheet["size"][0] + pane["top"]
    return pixels[top : top + height, left : left + width]


def stretched(values: NDArray[Any]) -> Pixels:
    """Return the tone: x / (2 p) + 0.5, p the 99th percentile of |x| where x is not 0."""
    x = values.astype(np.float32)
    p = np.percentile(np.abs(x[x != 0]), 99)
    grey = np.clip(x / (2 * p) + np.float32(0.5), 0, 1)
    levels: Pixels = (grey * 255 + np.float32(0.5)).astype(np.uint8)
    return levels


def test_every_unit_of_every_layer_is_there(
    do: Do, ready: Flags, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    do("gallery", **ready)
    assert capfd.readouterr().out.splitlines()[-1] == str(folder / "index.html")
    assert read(folder / "run.js")[0]["layers"] == list(CHANNELS)
    page = (folder / "index.html").read_text()
    for alias, channels in CHANNELS.items():
        assert f'href="#{alias}"' in page
        assert layer_of(folder, alias)["units"] == list(range(channels))
        assert len(units_of(folder, alias)) == channels
        together = layer_of(folder, alias)["sheet"]["units"]
        names = [path.name for path in sorted((folder / alias).glob("[0-9]*"))]
        assert names == [f"{unit:04d}.png" for unit in range(0, channels, together)]


def test_numbers_are_those_of_the_run(do: Do, ready: Flags, folder: Path, tmp_path: Path) -> None:
    do("gallery", **ready)
    with (
        h5py.File(tmp_path / "run" / "topk.h5") as top,
        h5py.File(tmp_path / "run" / "optimized" / "conv2.h5") as optimized,
    ):
        stored, layer = top["layers/conv2"], layer_of(folder, "conv2")
        for unit, facts in enumerate(units_of(folder, "conv2")):
            assert layer["max"][unit] == pytest.approx(stored["stats/max"][unit], rel=1e-3)
            assert facts["stats"]["mean"] == pytest.approx(stored["stats/mean"][unit], rel=1e-3)
            names = top["images/path"].asstr()[()]
            assert [row[2] for row in facts["top"]] == [
                names[i] for i in stored["image"][unit] if i >= 0
            ]
            best, first = facts["runs"]["3"][0][1], facts["runs"]["3"][0][0]
            values = optimized["3/activation"][unit]
            assert best == pytest.approx(values.max(), rel=1e-3)
            assert first == values.argmax()
            assert layer["outcome"][unit] == optimized["3/outcome"][unit, first]


def shape_of(value: Any) -> Any:
    """Return a plain value with types for its leaves, and of lists the first member alone."""
    if isinstance(value, dict):
        return {name: shape_of(held) for name, held in value.items() if not name.isdecimal()}
    return [shape_of(each) for each in value[:1]] if isinstance(value, list) else None


def test_data_of_another_form_have_another_version(do: Do, ready: Flags, folder: Path) -> None:
    """Else an older gallery would be taken for done. Raise one of the numbers with the digest."""
    do("topk", **ready | {"topk__sample": 12})
    do("gallery", **ready)
    data = {"layer": layer_of(folder, "conv2"), "units": units_of(folder, "conv2")}
    form = digest(shape_of(data | {"flow": list(flow_of(folder, "conv2"))}))
    versions = layers.PAGE_FORM[0], VERSION_OF_FLOWS
    assert (*versions, form) == (12, 2, "05da2e84bee4c7d5")


def test_names_that_were_found_are_shown_and_searched(
    do: Do, ready: Flags, folder: Path, tmp_path: Path
) -> None:
    do("gallery", **ready)
    assert layer_of(folder, "conv2")["labels"] is None
    table = "unit\tname\tarea\nconv2/0003\tzebra\t0.9\nconv2/0004\tunnamed\t0.5\n"
    (tmp_path / "run" / "names.tsv").write_text(table)
    before = (folder / "conv1" / "layer.js").stat().st_mtime_ns
    do("gallery", **ready)
    assert layer_of(folder, "conv2")["labels"] == ["", "", "", "zebra", "", "", "", ""]
    (searched,) = read(folder / "search.js")
    assert searched["conv2"]["labels"][3] == "zebra"
    assert "labels" not in searched["conv1"]
    assert (folder / "conv1" / "layer.js").stat().st_mtime_ns == before


def test_a_search_knows_the_classes_of_the_top_images(
    do: Do, ready: Flags, folder: Path, tmp_path: Path
) -> None:
    do("gallery", **ready)
    (searched,) = read(folder / "search.js")
    with h5py.File(tmp_path / "run" / "topk.h5") as top:
        labels, images = top["images/label"][()], top["layers/fc3/image"][()]
    for unit, found in enumerate(searched["fc3"]["classes"]):
        own = labels[images[unit][images[unit] >= 0]].tolist()
        for label, count, rank in zip(found[::3], found[1::3], found[2::3], strict=True):
            assert (own.count(label), own.index(label)) == (count, rank)
        assert sum(found[1::3]) == len(own)
    assert searched["fc3"]["k"] == images.shape[1]


def test_icons_are_the_pictures_of_the_grid(do: Do, ready: Flags, folder: Path) -> None:
    do("gallery", **ready)
    (run,) = read(folder / "run.js")
    for alias, channels in CHANNELS.items():
        listed = run["listed"][alias]
        assert listed["units"] == channels
        icons = np.asarray(Image.open(folder / alias / f"icons_000.{listed['suffix']}"))
        (height, width), columns = sprites.padded(listed["tile"]), run["columns"]
        assert icons.shape[:2] == (-(-channels // columns) * height, columns * width) or (
            channels < columns and icons.shape[:2] == (height, channels * width)
        )
    do("gallery", **ready | {"units": "1,3-4", "layer": ("conv1",)})
    assert read(folder / "run.js")[0]["listed"]["conv1"]["units"] == [1, 3, 4]


def test_the_first_page_has_patches_beside_optimized_images(
    do: Do, ready: Flags, folder: Path
) -> None:
    do("gallery", **ready)
    strip = read(folder / "run.js")[0]["strips"]["conv2"]
    units = strip["units"]
    assert (strip["rows"], len(units)) == (2, 7)  # half as many, as each has two pictures
    pixels = np.asarray(Image.open(folder / "conv2" / f"strip.{strip['suffix']}"))
    high, wide = pixels.shape[0] // 2, pixels.shape[1] // len(units)
    for at, unit in enumerate(units):
        for row, kind in enumerate(("patches", "optimized")):
            expected = picture(folder, "conv2", unit, kind, 0)
            found = pixels[row * high :, at * wide :][: expected.shape[0], : expected.shape[1]]
            assert np.array_equal(found, expected)


def test_pictures_are_those_of_the_run(do: Do, ready: Flags, folder: Path, tmp_path: Path) -> None:
    do("gallery", **ready)
    with (
        h5py.File(tmp_path / "run" / "topk.h5") as top,
        h5py.File(tmp_path / "run" / "optimized" / "conv1.h5") as optimized,
        h5py.File(tmp_path / "run" / "projected" / "conv1.h5") as projected,
    ):
        for unit in (0, 3):
            best = int(optimized["3/activation"][unit].argmax())
            found = picture(folder, "conv1", unit, "optimized", 0)
            assert (found == stretched(optimized["3/image"][unit, best])).all()
            for rank in range(9):
                values = projected["deconv/projection"][unit, rank].astype(np.float32)
                values *= projected["deconv/scale"][unit, rank]
                if values.any():
                    found = picture(folder, "conv1", unit, "projections", rank)
                    assert (found == stretched(values)).all()
                path = top["images/path"][top["layers/conv1/image"][unit, rank]].decode()
                y, x, bottom, right = top["layers/conv1/box"][unit, rank].tolist()
                image = np.pad(
                    np.asarray(Image.open(tmp_path / "images" / path)),
                    ((5, 5), (5, 5), (0, 0)),
                    constant_values=128,
                )
                wanted = image[5 + y : 5 + bottom, 5 + x : 5 + right]
                assert (picture(folder, "conv1", unit, "patches", rank) == wanted).all()


def test_units_share_a_file_as_far_as_it_stays_small(
    do: Do, ready: Flags, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pictures are the same, and `verify` knows each file."""
    do("gallery", **ready)
    whole = {(alias, unit): picture(folder, alias, unit, "patches", 2)
             for alias in CHANNELS for unit in range(CHANNELS[alias])}  # fmt: skip
    monkeypatch.setattr(layers, "SHEET_BYTES", 30_000)
    monkeypatch.setattr(layers, "PAGE_FORM", "smaller")
    do("gallery", **ready)
    sizes = [layer_of(folder, alias)["sheet"]["units"] for alias in CHANNELS]
    assert 1 in sizes
    assert max(sizes) > 1
    for alias, units in zip(CHANNELS, sizes, strict=True):
        names = [path.name for path in sorted((folder / alias).glob("[0-9]*.png"))]
        assert names == [f"{unit:04d}.png" for unit in range(0, CHANNELS[alias], units)]
        for unit in range(CHANNELS[alias]):
            assert (picture(folder, alias, unit, "patches", 2) == whole[alias, unit]).all()
    plan = Plan.make(None, {"run": ready["run"], "device": "cpu", "trust_code": True})
    assert not verify(plan, Report(quiet=True), 1, False).wrong
    shutil.copy(folder / "conv1" / "0000.png", folder / "conv1" / names[-1])
    (folder / "conv2" / "0004.png").unlink()
    wrong = "\n".join(verify(plan, Report(quiet=True), 1, False).wrong)
    assert "0004.png: is gone" in wrong


def test_photographs_are_there_as_a_whole(
    do: Do, ready: Flags, folder: Path, tmp_path: Path
) -> None:
    do("gallery", **ready)
    (about,) = read(folder / "photographs" / "photographs.js")
    with h5py.File(tmp_path / "run" / "topk.h5") as top:
        paths, shown = top["images/path"].asstr()[()], set[int]()
        for alias in CHANNELS:
            image, box = top[f"layers/{alias}/image"][()], top[f"layers/{alias}/box"][()]
            shown |= set(image[:, :9].ravel().tolist()) - {-1}
            for unit, facts in enumerate(units_of(folder, alias)):
                rows = [row for row in facts["top"] if alias != "fc3"]
                for rank, (_, _, name, index, *window) in enumerate(rows):
                    assert (name, index) == (paths[index], image[unit, rank])
                    assert window == box[unit, rank].tolist()
    assert about["images"] == sorted(shown)
    sheet = np.asarray(Image.open(folder / "photographs" / "0000.jpg"))
    (high, wide), (height, width) = about["cell"], about["tile"]
    for place, index in enumerate(about["images"][:16]):
        top_, left = place // about["columns"] * high, place % about["columns"] * wide
        found = sheet[top_ : top_ + height, left : left + width].astype(int)
        wanted = np.asarray(Image.open(tmp_path / "images" / paths[index])).astype(int)
        others = [np.abs(found - np.roll(wanted, k, axis=1)).mean() for k in (0, 8)]
        assert others[0] < others[1] / 2


def flow_of(folder: Path, alias: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    name, number, about, units = read(folder / alias / "flow_000.js")
    assert (name, number) == (alias, 0)
    return about, units


def test_what_feeds_a_unit_is_there_with_links_that_lead_somewhere(
    do: Do, ready: Flags, folder: Path
) -> None:
    do("gallery", **ready)
    assert read(folder / "run.js")[0]["flowing"] == list(CHANNELS)
    assert flow_of(folder, "conv1")[0]["first"] is True
    for alias, before in (("conv2", "conv1"), ("fc3", "conv2")):
        about, units = flow_of(folder, alias)
        assert (about["wired"], about["first"], about["images"]) == (True, False, 12)
        assert len(units) == CHANNELS[alias]
        for unit in units:
            for name in ("weights", "parts"):
                found = [(row[0], row[1]) for row in unit[name]]
                assert {layer for layer, _ in found} == {before}
                assert all(0 <= number < CHANNELS[before] for _, number in found)
        top = layer_of(folder, alias)["max"]
        assert all(unit["traced"] == 9 for unit in units if top[0] is not None)
    fed = {(u, row[1]) for u, unit in enumerate(flow_of(folder, "conv1")[1]) for row in unit["to"]}
    weights = {(row[1], u) for u, unit in enumerate(flow_of(folder, "conv2")[1])
               for row in unit["weights"]}  # fmt: skip
    assert fed & weights, "both ends of a strong connection speak of it"
    wide, letters = next(iter(flow_of(folder, "conv1")[1][0]["maps"].values()))
    levels = unpacked(letters)
    assert len(levels) == wide * wide
    assert max(levels) == "f"


def unpacked(letters: str) -> str:
    """Return a digit per level, as the page does: a letter after f is a row of zeros."""
    return re.sub("[g-y]", lambda found: "0" * (ord(found[0]) - 101), letters)


def test_rows_of_zeros_are_one_letter() -> None:
    levels = np.array([[0, 0, 15, 0], [1, *[0] * 3], *[[0] * 4] * 6, [0, 0, 0, 9]], np.uint8)
    letters = drawn_levels(levels)
    assert letters == "gf01yo9"
    assert unpacked(letters) == "".join(f"{level:x}" for level in levels.flat)


def test_without_weights_all_else_is_there(
    do: Do, ready: Flags, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def refuse(*_: Any) -> None:
        raise UsageError("gone.pth: there is no such file")

    monkeypatch.setattr("cnnvis_cli.stages.gallery.flows.load_checked", refuse)
    with open_session(Plan.make(None, ready), Report(), new=False, weights=False) as session:
        make_gallery(session)
    assert "no weights: gone.pth" in capfd.readouterr().err
    assert read(folder / "run.js")[0]["flowing"] == []
    assert layer_of(folder, "conv2")["units"] == list(range(8))
    assert not list(folder.glob("*/flow_*"))
    monkeypatch.undo()
    do("gallery", **ready | {"gallery__trace": 0})
    assert not list(folder.glob("*/flow_*"))
    do("gallery", **ready | {"gallery__trace": 3})
    about, _ = flow_of(folder, "conv2")
    assert about["images"] <= 3


def test_what_a_sample_tells_is_shown(do: Do, ready: Flags, folder: Path, tmp_path: Path) -> None:
    do("topk", **ready | {"topk__sample": 12})
    (tmp_path / "run" / "scores.tsv").write_text(
        "unit\texplanation\tscore\terror\tcontrol\nconv2/0003\timages\t0.9\t0.01\t0.5\n"
    )
    do("gallery", **ready)
    panes = [pane["kind"] for pane in layer_of(folder, "conv2")["sheet"]["panes"]]
    assert panes[-1] == "intervals"
    assert len(layer_of(folder, "conv2")["faces"]) == len(panes) - 1
    with h5py.File(tmp_path / "run" / "sample.h5") as sample:
        stored = sample["layers/conv2"]
        values = stored["value"][()].astype(np.float32) * stored["scale"][()]
        labels, paths = sample["images/label"][()], sample["images/path"].asstr()[()]
    for unit, facts in enumerate(units_of(folder, "conv2")):
        assert len(facts["intervals"]) == 4
        for value, label, path in (each for _, shown in facts["intervals"] for each in shown):
            row = paths.tolist().index(path)
            assert value == pytest.approx(float(values[row, unit]), rel=1e-3)
            assert label == labels[row]
        above = np.maximum(values[:, unit], 0)
        wanted = {label: float(above[labels == label].mean()) for label in (0, 1)}
        low, high, counts = facts["maxima"]
        assert (low, high) == pytest.approx(
            (values[:, unit].min(), values[:, unit].max()), rel=1e-2
        )
        edges = np.linspace(values[:, unit].min(), values[:, unit].max(), len(counts) + 1)
        assert counts == np.histogram(values[:, unit], edges)[0].tolist()
        found = {label: mean for label, mean, _ in facts["breakdown"]}
        assert found == pytest.approx({k: v for k, v in wanted.items() if v > 0}, rel=1e-3)
    assert units_of(folder, "conv2")[3]["scores"] == [["images", "0.9", "0.01", "0.5"]]
    assert "scores" not in units_of(folder, "conv2")[2]


def test_the_lowest_places_are_shown_where_topk_kept_them(
    do: Do, flags: Flags, folder: Path, tmp_path: Path
) -> None:
    do("topk", **flags, topk__min=True)
    do("gallery", **flags)
    layer = layer_of(folder, "conv2")
    assert [pane["kind"] for pane in layer["sheet"]["panes"]] == ["patches", "lowest"]
    assert [face["kind"] for face in layer["faces"]] == ["patches"]
    (about,) = read(folder / "photographs" / "photographs.js")
    with h5py.File(tmp_path / "run" / "topk.h5") as top:
        low = top["layers/conv2/min"]
        paths = top["images/path"].asstr()[()]
        for unit, facts in enumerate(units_of(folder, "conv2")):
            indices = low["image"][unit].tolist()
            assert [row[2] for row in facts["lowest"]] == paths[indices].tolist()
            values = [row[0] for row in facts["lowest"]]
            assert values == sorted(values)
            assert values == pytest.approx(low["activation"][unit].tolist(), rel=1e-3)
            assert set(indices) <= set(about["images"])
            y, x, bottom, right = low["box"][unit, 0].tolist()
            image = np.asarray(Image.open(tmp_path / "images" / paths[indices[0]]))
            wanted = np.pad(image, ((9, 9), (9, 9), (0, 0)), constant_values=128)
            wanted = wanted[9 + y : 9 + bottom, 9 + x : 9 + right]
            assert (picture(folder, "conv2", unit, "lowest", 0) == wanted).all()


def test_a_quiz_asks_of_photographs_that_are_not_shown(
    do: Do, ready: Flags, folder: Path, tmp_path: Path
) -> None:
    do("topk", **ready | {"topk__sample": 12})
    do("gallery", **ready)
    questions = read(folder / "quiz.js")[0]["questions"]
    assert {row[0] for row in questions} == set(CHANNELS)
    assert {row[5] for row in questions} == {"left", "right"}
    kinds = {layer_of(folder, row[0])["sheet"]["panes"][row[2]]["kind"] for row in questions}
    assert kinds == {"optimized", "patches"}
    whole = read(folder / "photographs" / "photographs.js")[0]["images"]
    with h5py.File(tmp_path / "run" / "sample.h5") as sample:
        paths = sample["images/path"].asstr()[()].tolist()
        for alias, unit, _, left, right, answer, *names in questions:
            stored = sample["layers"][alias]
            values = stored["value"][:, unit].astype(float)
            first, second = (values[paths.index(name)] for name in names)
            assert first != second
            assert answer == ("left" if first > second else "right")
            assert not {row[2] for row in units_of(folder, alias)[unit]["top"]} & set(names)
            assert {left, right} <= set(whole)
    (tmp_path / "run" / "sample.h5").unlink()
    do("gallery", **ready)
    assert not (folder / "quiz.js").exists()
    assert "#quiz" not in (folder / "index.html").read_text()


def test_images_are_compared_with_the_best_photograph_and_ties_are_told(
    do: Do, ready: Flags, folder: Path, tmp_path: Path
) -> None:
    do("gallery", **ready)
    with (
        h5py.File(tmp_path / "run" / "topk.h5") as top,
        h5py.File(tmp_path / "run" / "optimized" / "conv1.h5") as optimized,
    ):
        best = top["layers/conv1/activation"][()]
        values = optimized["3/activation"][()].max(axis=1)
    in_grid = layer_of(folder, "conv1")["faces"][0]["ratios"]
    strip = read(folder / "run.js")[0]["strips"]["conv1"]
    assert strip["ratios"] == [in_grid[unit] for unit in strip["units"]]
    for unit, facts in enumerate(units_of(folder, "conv1")):
        assert in_grid[unit] == facts.get("ratios", {}).get("3")
        if best[unit, 0] > 0:
            wanted = float(values[unit] / best[unit, 0])
            assert facts["ratios"]["3"] == pytest.approx(wanted, rel=1e-3)
        else:
            assert "ratios" not in facts
        equal = [(best[unit] == value).sum() for value in best[unit]]
        assert facts["ties"] == sum(count > 1 for count in equal)
    assert units_of(folder, "conv1")[CONSTANT]["ties"] > 2


def test_a_dead_unit_says_so_and_has_no_top_images(do: Do, ready: Flags, folder: Path) -> None:
    do("gallery", **ready)
    layer, units = layer_of(folder, "conv1"), units_of(folder, "conv1")
    assert DEAD in layer["dead"]
    assert CONSTANT not in layer["dead"]
    assert units[DEAD]["stats"]["dead"] is True
    assert units[DEAD]["stats"]["selectivity"] is None  # NaN there, which JSON does not have
    assert "never active" in (folder / "index.html").read_text()


def test_names_of_a_person_s_files_stay_text(
    do: Do, flags: Flags, folder: Path, tmp_path: Path, photographs: Callable[..., Path]
) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("</script><script>alert(1)</script>\n../../../x -->\n")
    for number, name in enumerate(HOSTILE):
        (tmp_path / "images" / f"class{number}").rename(tmp_path / "images" / name)
    do("topk", **flags)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    title = "<script>alert(2)</script>"
    for extra in ({}, {"figure__classes": str(classes)}):
        do("gallery", **flags, **extra, gallery__title=title)
        for path in folder.rglob("*.js"):
            if path.name == "gallery.js":
                continue
            text = path.read_text("ascii")  # so there is no U+2028, and no mark of direction
            assert not set("<>&") & set(text)
            assert text.count("\n") == 2
        page = (folder / "index.html").read_text()
        assert "alert(2)" in page
        assert "<script>" not in page
        assert "onerror" not in page
    units = units_of(folder, "fc3")
    assert any("onerror" in row[2] for unit in units for row in unit["top"])
    assert read(folder / "run.js")[0]["classes"][0] == "</script><script>alert(1)</script>"
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert all(path.is_relative_to(folder) for path in new)
    for path in new:
        assert re.fullmatch(
            r"((conv|fc)\d+/|photographs/)?[a-z0-9_]+\.\w+", str(path.relative_to(folder))
        )


def test_names_that_are_no_unicode_are_shown_as_well_as_can_be() -> None:
    content = site.data("run", {"classes": ["caf\udce9"]}, key="k")
    assert b"caf\\udce9" in content


def test_the_page_allows_nothing_but_its_own_files(do: Do, flags: Flags, folder: Path) -> None:
    do("topk", **flags)
    do("gallery", **flags)
    page = (folder / "index.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    assert policy[1].startswith("default-src 'none'")
    assert "unsafe" not in policy[1]
    assert not re.search(r"\son\w+=|\sstyle=|<style|https?:", page)
    script = (folder / "gallery.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|fetch", script)


def test_a_rerun_changes_no_byte(
    do: Do, ready: Flags, folder: Path, snapshot: Callable[[Path], dict[str, Any]]
) -> None:
    do("gallery", **ready)
    before = snapshot(folder.parent)
    do("gallery", **ready)
    assert snapshot(folder.parent) == before


def test_a_gallery_that_was_interrupted_carries_on(
    do: Do,
    ready: Flags,
    folder: Path,
    interrupted: Callable[[int], Report],
    snapshot: Callable[[Path], dict[str, tuple[str, int]]],
) -> None:
    do("gallery", **ready)
    whole = {name: content for name, (content, _) in snapshot(folder).items()}
    shutil.rmtree(folder)
    with pytest.raises(Stopped):
        do("gallery", interrupted(5), **ready)
    assert not (folder / "index.html").exists()
    half = snapshot(folder)
    do("gallery", **ready)
    after = snapshot(folder)
    assert {name: content for name, (content, _) in after.items()} == whole
    assert after["conv1/units_000.js"] == half["conv1/units_000.js"], "it was made twice"


def test_only_the_layer_that_has_changed_is_made_anew(
    do: Do, ready: Flags, folder: Path, snapshot: Callable[[Path], dict[str, Any]]
) -> None:
    ready["optimize__style"] = ("3",)  # what is planned comes first
    do("gallery", **ready)
    before = snapshot(folder)
    other = {"layer": ("fc3",), "optimize__style": ("1",), "optimize__iterations": 2}
    do("optimize", **ready | other, optimize__step="1")
    do("gallery", **ready)
    changed = {name for name, found in snapshot(folder).items() if before.get(name) != found}
    page = {"index.html", "run.js", "search.js"}
    assert {name.split("/")[0] for name in changed} == {"fc3", *page}
    kinds = [(pane["kind"], pane["name"]) for pane in layer_of(folder, "fc3")["sheet"]["panes"]]
    assert kinds[:2] == [("optimized", "3"), ("optimized", "1")]


def test_what_is_missing_or_of_an_older_gallery_is_put_right(
    do: Do, ready: Flags, folder: Path, snapshot: Callable[[Path], dict[str, Any]]
) -> None:
    do("gallery", **ready)
    before = snapshot(folder)
    own = folder / "conv1" / "notes.txt"
    own.write_text("a person's own")
    (folder / "CNAME").write_text("example.org")
    (folder / "conv1" / "0000.png").unlink()
    for name in ("conv1/0999.jpg", "conv1/.0001.png.abc.tmp", "conv9/layer.js"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("// 0123456789abcdef\nold")
    do("gallery", **ready)
    after = snapshot(folder)
    assert {*after} == {*before, "CNAME", "conv1/notes.txt"}
    assert after["conv1/0000.png"][0] == before["conv1/0000.png"][0]
    assert not (folder / "conv9").exists()


@pytest.mark.parametrize(
    ("name", "other"), [("0000.png", "grid1_000.png"), ("grid0_000.png", "0000.png")]
)
def test_a_picture_in_the_place_of_another_is_put_right(
    name: str, other: str, do: Do, ready: Flags, folder: Path, tmp_path: Path
) -> None:
    do("gallery", **ready)
    right = (folder / "conv1" / name).read_bytes()
    shutil.copy(folder / "conv1" / other, folder / "conv1" / name)
    plan = Plan.make(None, {"run": ready["run"], "device": "cpu", "trust_code": True})
    wrong = "\n".join(verify(plan, Report(quiet=True), 1, False).wrong)
    assert "conv1: has other pictures than units_000.js was written for" in wrong
    do("gallery", **ready)
    assert (folder / "conv1" / name).read_bytes() == right


def test_a_gallery_of_an_older_version_stays_as_it_is(
    do: Do, ready: Flags, folder: Path, snapshot: Callable[[Path], dict[str, Any]]
) -> None:
    """Its scripts have no digest of the pictures."""
    do("gallery", **ready)
    for path in folder.rglob("*.js"):
        content = path.read_bytes()
        path.write_bytes(re.sub(rb"^(// [0-9a-f]{16}) [0-9a-f]{16}", rb"\1", content))
    before = snapshot(folder)
    do("gallery", **ready)
    assert snapshot(folder) == before


def test_edited_classes_are_refused(do: Do, ready: Flags, folder: Path) -> None:
    path = folder.parent / "run.json"
    record = json.loads(path.read_text())
    record["dataset"]["classes"].reverse()
    path.write_text(json.dumps(record))
    with pytest.raises(UsageError, match=r"run\.json: dataset\.classes are not those that topk"):
        do("gallery", **ready)
    do("topk", **ready)
    do("gallery", **ready)


@pytest.mark.parametrize("held", ["topk", "optimized", "some units"])
def test_it_works_with_whatever_there_is(
    held: str, do: Do, flags: Flags, folder: Path, tmp_path: Path
) -> None:
    if held == "topk":
        do("topk", **flags)
        do("gallery", **flags)
        assert [pane["kind"] for pane in layer_of(folder, "fc3")["sheet"]["panes"]] == ["patches"]
        return
    some = flags | {"layer": ("conv2",), "units": "1,5" if held == "some units" else ""}
    do("optimize", **some, optimize__style=("3",), optimize__iterations=2, optimize__step="1")
    if held == "some units":
        do("topk", **flags)
    do("gallery", **flags | {"dataset": None})
    layer = layer_of(folder, "conv2")
    if held == "optimized":
        assert read(folder / "run.js")[0]["layers"] == ["conv2"]
        assert "max" not in layer
        assert "top" not in units_of(folder, "conv2")[0]
    else:
        assert layer["units"] == list(range(8))
        assert layer["faces"][0]["lacks"] == [0, 2, 3, 4, 6, 7]
        assert [bool(unit["runs"]["3"]) for unit in units_of(folder, "conv2")][:2] == [False, True]


def test_sums_and_directions_are_no_units(do: Do, flags: Flags, folder: Path) -> None:
    some = flags | {"layer": ("conv2",), "optimize__style": ("3",)}
    some |= {"optimize__iterations": 2, "optimize__step": "1"}
    do("optimize", **some)
    do("optimize", **some, optimize__sum=("1 + 2",))
    do("gallery", **flags)
    assert [p["name"] for p in layer_of(folder, "conv2")["sheet"]["panes"]] == ["3"]


@pytest.mark.parametrize("layer", [(), ("conv2",)])
def test_nothing_to_show_is_said_with_what_to_run(
    layer: tuple[str, ...], do: Do, flags: Flags, folder: Path
) -> None:
    if layer:
        do("topk", **flags | {"layer": ("conv1",)})
    with pytest.raises(UsageError, match="cnnvis topk"):
        do("gallery", **flags | {"layer": layer})
    assert not folder.exists()


def test_units_can_be_chosen(do: Do, ready: Flags, folder: Path) -> None:
    do("gallery", **ready)
    do("gallery", **ready | {"units": "1,3-4", "layer": ("conv1",)})
    assert layer_of(folder, "conv1")["units"] == [1, 3, 4]
    assert [path.name for path in sorted((folder / "conv1").glob("[0-9]*"))] == ["0001.png"]
    assert not (folder / "conv2").exists()
    near = [other for unit in units_of(folder, "conv1") for other, _ in unit["near"]]
    assert set(near) <= {1, 3, 4}


def test_images_that_have_gone_cost_the_patches_and_nothing_else(
    do: Do, ready: Flags, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").rename(tmp_path / "away")
    do("gallery", Report(), **ready | {"dataset": None})
    said = capfd.readouterr().err
    assert said.count("--dataset") == 1
    assert "no patches" in (folder / "index.html").read_text()
    assert {p["kind"] for p in layer_of(folder, "fc3")["sheet"]["panes"]} == {
        "optimized",
        "projections",
    }
    do("gallery", Report(), **ready | {"dataset": str(tmp_path / "away")})
    assert "dataset" not in capfd.readouterr().err
    assert "no patches" not in (folder / "index.html").read_text()


def test_patches_that_are_there_stay_when_their_images_go(
    do: Do, ready: Flags, folder: Path, tmp_path: Path, snapshot: Callable[[Path], dict[str, Any]]
) -> None:
    do("gallery", **ready)
    before = snapshot(folder)
    shutil.rmtree(tmp_path / "images")
    do("gallery", **ready | {"dataset": None})
    assert snapshot(folder) == before


def test_an_image_that_has_changed_is_told_and_grey(
    do: Do, ready: Flags, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(tmp_path / "run" / "topk.h5") as top:
        index = int(top["layers/conv1/image"][0, 1])
        path = tmp_path / "images" / top["images/path"][index].decode()
    path.write_bytes(b"another")
    do("gallery", Report(), **ready)
    assert "1 images can no longer be read" in capfd.readouterr().err
    assert (picture(folder, "conv1", 0, "patches", 1) == 128).all()


def test_neighbours_share_the_most_of_their_images() -> None:
    draw = np.random.default_rng(0)
    images = draw.integers(-1, 12, (40, 6))
    images = np.array([np.unique(row[row >= 0], return_index=False).tolist() + [-1] * 6
                       for row in images], dtype=object)  # fmt: skip
    padded = np.array([row[:6] for row in images.tolist()], np.int64)
    sets = [set(row[row >= 0].tolist()) for row in padded]
    for row, found in zip(range(8, 20), neighbours(padded, slice(8, 20)), strict=True):
        shared = {o: len(sets[row] & sets[o]) for o in range(40) if o != row}
        share = {o: n / len(sets[row] | sets[o]) for o, n in shared.items() if n}
        wanted = sorted(share, key=lambda o: (-share[o], o))[:8]
        assert found == [(other, shared[other]) for other in wanted]


def test_no_images_no_neighbours() -> None:
    assert neighbours(np.full((3, 2), -1), slice(0, 3)) == [[], [], []]


def test_bars_hold_every_count_where_it_belongs() -> None:
    counts = np.zeros(BINS, np.int64)
    bins = edges()
    first, last = np.searchsorted(bins, (-2.0, 6.0)) - 1
    counts[first + 1], counts[last] = 100, 30
    found = histogram_bars(counts, 6.0)
    assert found
    low, high, heights = found
    assert (low, high) == (-2.0, 6.0)
    assert sum(heights) == pytest.approx(130, abs=len(heights))
    middle = np.linspace(low, high, len(heights) + 1)[:-1]
    assert sum(n for n, x in zip(heights, middle, strict=True) if x < 0) == pytest.approx(
        100, abs=4
    )
    farther = histogram_bars(counts, 20.0)  # a place that was not counted
    assert farther
    assert (farther[1], farther[2][-1]) == (20.0, 0)
    assert histogram_bars(np.zeros(BINS, np.int64), np.nan) is None
    assert histogram_bars(counts, np.nan) is None


def test_the_units_of_its_progress_are_those_of_the_run(
    do: Do, ready: Flags, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each once: the strips of layers show some again."""
    counted: dict[str, int] = {}
    totals = {"drawing": sum(CHANNELS.values()), "tracing": 12}
    add = Meter.add

    def note(meter: Meter, units: int, note: str = "") -> None:
        counted[meter._what] = counted.get(meter._what, 0) + units
        assert meter._total == totals[meter._what]
        add(meter, units, note)

    monkeypatch.setattr(Meter, "add", note)
    do("gallery", **ready)
    assert counted == totals
