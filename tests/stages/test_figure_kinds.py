"""Every kind of figure: which files, what is on them, and which units are chosen."""

from __future__ import annotations

import json
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
from cnnvis_cli.ascent.starts import noise, seed_of
from cnnvis_cli.ascent.styles import ordered_styles
from cnnvis_cli.errors import UsageError
from cnnvis_cli.figure import sheets
from cnnvis_cli.figure.canvas import TextLine
from cnnvis_cli.network.zoo import imagenet_names
from cnnvis_cli.nouns import Unit
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.class_names import class_names
from cnnvis_cli.stages.common.session import open_session
from cnnvis_cli.stages.figures.montage import KINDS
from cnnvis_cli.stages.run.pipeline import STAGES
from cnnvis_cli.store.sample_file import SampleFile
from tests.sealing import altered

Do = Callable[..., None]
Flags = dict[str, Any]
CONV3, FC8 = (2, 9, 40), (3, 9, 10)
CHOSEN = (2, 9)  # of kinds that have all units


def work(stage: str, **flags: Any) -> None:
    with open_session(Plan.make(None, flags), Report(quiet=True)) as session:
        STAGES[stage](session)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the demo network with something for every kind."""
    folder = tmp_path_factory.mktemp("figures")
    draw = np.random.default_rng(0)
    for name in ("cat", "night_train"):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(6):
            coarse = draw.integers(0, 256, (8, 8, 3)).astype(np.uint8)
            picture = Image.fromarray(coarse).resize((112, 112), Image.Resampling.BICUBIC)
            picture.save(folder / "images" / name / f"{number}.png")
    flags = {"model": "demo", "device": "cpu", "workers": 0, "run": str(folder / "run")}
    layers = ("conv3", "fc8")
    work("topk", **flags, dataset=str(folder / "images"), layer=layers, topk__sample=12)
    for layer, units in zip(layers, (CONV3, FC8), strict=True):
        chosen = flags | {"layer": (layer,), "units": ",".join(map(str, units))}
        work("optimize", **chosen, optimize__style=("3", "1"), optimize__runs=5,
             optimize__iterations=4, optimize__step="paper")  # fmt: skip
        work("project", **chosen)
    return folder / "run"


@pytest.fixture
def flags(made: Path, tmp_path: Path) -> Flags:
    """Flags that go with a copy of the run, and nothing but the run."""
    shutil.copytree(made, tmp_path / "run")
    plain = {"figure__tone": "max", "figure__scale": 1}
    return {"run": str(tmp_path / "run"), "device": "cpu", "workers": 0, **plain}


def figures(flags: Flags) -> list[str]:
    folder = Path(flags["run"]) / "figures"
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def opened(flags: Flags, name: str) -> Pixels:
    return np.asarray(Image.open(Path(flags["run"]) / "figures" / name).convert("RGB"))


def record(flags: Flags, name: str) -> dict[str, Any]:
    with Image.open(Path(flags["run"]) / "figures" / name) as image:
        image.load()
        found: dict[str, Any] = json.loads(str(image.info["cnnvis"]))
        return found


def read(flags: Flags, layer: str, name: str, kind: str = "optimized") -> NDArray[Any]:
    with h5py.File(Path(flags["run"]) / kind / f"{layer}.h5") as file:
        values: NDArray[Any] = file[name][()]
        return values


def stretched(tile: NDArray[Any]) -> Pixels:
    """Return the contract's tone: x / max(2 max, -2 min) + 0.5."""
    x = tile.astype(np.float32)
    grey = x / max(2 * x.max(), -2 * x.min()) + np.float32(0.5)
    levels: Pixels = (grey * 255 + np.float32(0.5)).astype(np.uint8)
    return levels


def places(sheet: Pixels, tile: Pixels) -> list[tuple[int, int]]:
    """Return where a picture is on a sheet, but for a grey level of rounding."""
    height, width = tile.shape[:2]
    y, x = divmod(int(np.abs(tile.astype(int) - 128).sum(axis=-1).argmax()), width)
    field = sheet[y : len(sheet) - height + y + 1, x : sheet.shape[1] - width + x + 1]
    near = (np.abs(field.astype(np.int16) - tile[y, x]) <= 1).all(axis=-1)  # its rarest pixel
    return [
        (top, left)
        for top, left in np.argwhere(near).tolist()
        if (np.abs(sheet[top : top + height, left : left + width].astype(int) - tile) <= 1).all()
    ]


FILES = {
    "accent": [f"fc8_{u:04d}.png" for u in CHOSEN],
    "optimized": ["conv3.png", "fc8.png"],
    "top": ["conv3.png", "fc8.png"],
    "history": ["conv3.png", "fc8.png"],
    "layers": ["all.png"],
    "intervals": [f"{layer}_{u:04d}.png" for layer in ("conv3", "fc8") for u in CHOSEN],
    "styles": [f"conv3_{u:04d}.png" for u in CONV3] + [f"fc8_{u:04d}.png" for u in FC8],
    "unit": [f"conv3_{u:04d}.png" for u in CONV3] + [f"fc8_{u:04d}.png" for u in FC8],
    "toolbox": [
        f"{what}/{layer}/{layer}_{unit:04d}{end}.jpg"
        for what, end in (("max_deconv", ""), ("max_im", ""), ("regularized_opt", "_montage"))
        for layer, units in (("conv3", CONV3), ("fc8", FC8))
        for unit in units
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_files_and_is_not_drawn_twice(
    kind: str, do: Do, flags: Flags, snapshot: Callable[[Path], dict[str, Any]]
) -> None:
    flags |= {"montage__kind": (kind,), "figure__pdf": True}
    if kind in ("accent", "intervals"):
        flags["units"] = ",".join(map(str, CHOSEN))
    if kind == "accent":
        photo = str(Path(flags["run"]).parent / "photo.png")
        Image.effect_noise((112, 112), 60).convert("RGB").save(photo)
        start = {"optimize__style": (kind,), "optimize__start": photo, "optimize__iterations": 2}
        do("optimize", **flags, **start, model="demo", layer=("fc8",))
    do("montage", **flags)
    pictures = [f"{kind}/{name}" for name in FILES[kind]]
    papers = [name.replace(".png", ".pdf") for name in pictures if name.endswith(".png")]
    assert figures(flags) == sorted(pictures + papers)
    before = snapshot(Path(flags["run"]))
    do("montage", **flags)
    assert snapshot(Path(flags["run"])) == before


def test_two_processes_draw_what_one_does(do: Do, flags: Flags) -> None:
    flags |= {"montage__kind": ("unit", "optimized"), "figure__pdf": True}
    do("montage", **flags)
    folder = Path(flags["run"]) / "figures"
    alone = {name: (folder / name).read_bytes() for name in figures(flags)}
    shutil.rmtree(folder)
    do("montage", **flags | {"workers": 2})
    assert {name: (folder / name).read_bytes() for name in figures(flags)} == alone


def test_four_runs_of_every_layer_are_on_one_figure(do: Do, flags: Flags) -> None:
    do("montage", **flags | {"montage__kind": ("layers",), "montage__style": ("3",)})
    sheet = opened(flags, "layers/all.png")
    tops = {}
    for layer, units in (("conv3", CONV3), ("fc8", FC8)):
        images, value = read(flags, layer, "3/image"), read(flags, layer, "3/activation")
        for row in range(len(units)):
            best = int(value[row].argmax())
            shown = [best, *(run for run in range(5) if run != best)][:4]
            found = [places(sheet, stretched(images[row, run])) for run in range(5)]
            assert [run for run in range(5) if found[run]] == sorted(shown)
            tops[layer] = found[best][0][0]
    assert tops["fc8"] < tops["conv3"], "the last layer is on top"


def test_patches_of_five_intervals_stand_from_left_to_right(do: Do, flags: Flags) -> None:
    """Twelve images: nine strongest, and what is left of the other intervals."""
    file = SampleFile(Path(flags["run"], "sample.h5"))
    values, images = file.values("fc8"), file.images()
    unit = int((values > 0).sum(axis=0).argmax())
    order = np.argsort(-values[:, unit], kind="stable")
    count = min(9, int((values[:, unit] > 0).sum()))
    assert 1 < count < 12
    wanted = {"montage__kind": ("intervals",), "layer": ("fc8",), "units": str(unit)}
    do("montage", **flags | wanted)
    sheet = opened(flags, f"intervals/fc8_{unit:04d}.png")
    root = Path(json.loads(Path(flags["run"], "run.json").read_text())["dataset"]["path"])
    found = []
    for row in order:
        with Image.open(root / images.name(int(row))) as image:
            found.append(places(sheet, np.asarray(image.convert("RGB"))))
    strongest = [place for each in found[:count] for place in each]
    assert len(strongest) == count
    assert strongest == sorted(strongest)
    right = [left for each in found[count:] for _, left in each]
    assert right
    assert min(right) > max(left for _, left in strongest)


def test_intervals_need_a_sample(do: Do, flags: Flags) -> None:
    Path(flags["run"], "sample.h5").unlink()
    with pytest.raises(UsageError, match=r"has no sample\.h5 yet; run cnnvis topk --sample 10000"):
        do("montage", **flags | {"montage__kind": ("intervals",), "layer": ("fc8",)})


def test_a_block_for_each_style(do: Do, flags: Flags) -> None:
    do("montage", **flags | {"montage__kind": ("styles",), "layer": ("conv3",)})
    sheet = opened(flags, "styles/conv3_0009.png")
    for run in range(5):
        first = places(sheet, stretched(read(flags, "conv3", "1/image")[1, run]))
        third = places(sheet, stretched(read(flags, "conv3", "3/image")[1, run]))
        assert min(left for _, left in first) < max(left for _, left in third)
    again = flags | {"montage__kind": ("styles",), "montage__style": ("3",), "layer": ("conv3",)}
    do("montage", **again)
    assert record(flags, "styles/conv3_0009.png")["styles"][0]["style"] == "3"


def test_the_panes_of_a_unit_stand_side_by_side(do: Do, flags: Flags, made: Path) -> None:
    do("montage", **flags | {"montage__kind": ("unit",), "layer": ("conv3",), "units": "9"})
    sheet = opened(flags, "unit/conv3_0009.png")
    projected = read(flags, "conv3", "deconv/projection", "projected")[9]
    with h5py.File(Path(flags["run"]) / "topk.h5") as top:
        image = int(top["layers/conv3/image"][9, 0])
        y, x, bottom, right = top["layers/conv3/box"][9, 0].tolist()
        path = top["images/path"][image].decode()
    photograph = np.asarray(Image.open(made.parent / "images" / path))
    patch = np.full((bottom - y, right - x, 3), 128, np.uint8)
    seen = photograph[max(y, 0) : bottom, max(x, 0) : right]
    patch[max(-y, 0) :, max(-x, 0) :][: seen.shape[0], : seen.shape[1]] = seen
    ((_, left0), *_) = places(sheet, stretched(read(flags, "conv3", "1/image")[1, 0]))
    (*_, (top1, left1)) = places(sheet, stretched(read(flags, "conv3", "3/image")[1, 0]))
    ((_, left2), *_) = places(sheet, patch)
    ((_, left3), *_) = places(sheet, stretched(projected[0]))
    assert left0 < left1 < left2 < left3
    assert top1 > 30, "below the titles"


def test_the_toolbox_s_viewer_finds_its_blocks(do: Do, flags: Flags) -> None:
    """Its rule: caffevis/caffevis_helper.py, crop_to_corner."""
    do("montage", **flags | {"montage__kind": ("toolbox",), "layer": ("fc8",), "units": "9"})
    montage = opened(flags, "toolbox/regularized_opt/fc8/fc8_0009_montage.jpg")
    assert montage.shape[0] == montage.shape[1]
    assert montage.shape[0] % 2 == 0
    half = len(montage) // 2
    corner = montage[half + 3 : 2 * half - 3, 3 : half - 3].astype(int)
    assert corner.shape[:2] == (3 * 112 + 2, 3 * 112 + 2)
    value = read(flags, "fc8", "3/activation")[1]
    best = stretched(read(flags, "fc8", "3/image")[1, int(value.argmax())])
    assert np.abs(corner[:112, :112] - best).mean() < 6  # JPEG
    patches = opened(flags, "toolbox/max_im/fc8/fc8_0009.jpg")
    assert patches.shape[:2] == (3 * 113 - 1, 3 * 113 - 1)


def test_layers_in_one_figure(do: Do, flags: Flags) -> None:
    flags |= {"montage__kind": ("top",), "montage__together": True}
    do("montage", **flags | {"montage__random": 2})
    assert figures(flags) == ["top/all.png"]
    chosen = {each["layer"]: each["units"] for each in record(flags, "top/all.png")["layers"]}
    assert [len(units) for units in chosen.values()] == [2, 2]
    sheet = opened(flags, "top/all.png")
    for layer, units in chosen.items():
        projected = read(flags, layer, "deconv/projection", "projected")
        for unit in units:
            assert places(sheet, stretched(projected[unit, 0]))


@pytest.mark.parametrize("kind", ["styles", "unit"])
def test_units_in_one_figure(kind: str, do: Do, flags: Flags) -> None:
    flags |= {"montage__kind": (kind,), "montage__together": True, "layer": ("fc8",)}
    do("montage", **flags)
    assert figures(flags) == [f"{kind}/fc8.png"]
    assert record(flags, f"{kind}/fc8.png")["units"] == list(FC8)


def chosen(do: Do, flags: Flags, **how: Any) -> list[int]:
    """Return the units that a sheet of conv3 shows."""
    do("montage", **flags | {"montage__kind": ("optimized",), "layer": ("conv3",), **how})
    units: list[int] = record(flags, "optimized/conv3.png")["units"]
    return units


@pytest.mark.parametrize("by", ["max", "selectivity", "active"])
def test_units_are_sorted_by_what_topk_says(by: str, do: Do, flags: Flags) -> None:
    with h5py.File(Path(flags["run"]) / "topk.h5") as top:
        known = top[f"layers/conv3/stats/{by}"][()]
    expected = sorted(CONV3, key=lambda unit: -known[unit])
    assert chosen(do, flags, montage__sort=by) == expected
    assert chosen(do, flags, montage__sort=by, montage__best=2) == expected[:2]


def test_the_best_are_those_of_the_largest_maximum(do: Do, flags: Flags) -> None:
    one = chosen(do, flags, montage__best=1)
    assert one == chosen(do, flags, montage__best=1, montage__sort="max")


def test_a_sample_follows_from_the_seed(do: Do, flags: Flags) -> None:
    found = {seed: chosen(do, flags, montage__random=2, seed=seed) for seed in range(8)}
    assert all(len(units) == 2 and set(units) < set(CONV3) for units in found.values())
    assert chosen(do, flags, montage__random=2, seed=3) == found[3]
    assert len({tuple(units) for units in found.values()}) > 1
    assert chosen(do, flags, montage__random=99) == list(CONV3)


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ({"montage__style": ("3", "1")}, "one --style"),
        ({"montage__style": ("9",)}, "'9'"),
        ({"units": "1,2"}, "not done"),
        ({"montage__kind": ("top",), "montage__method": "guided"}, "guided"),
        ({"montage__kind": ("unit",), "figure__classes": "/there/is/none"}, "--classes"),
        ({"figure__scale": 1.5}, "--scale 1.5"),
        ({"montage__best": 0}, "--best 0"),
    ],
)
def test_a_wrong_choice_is_named(how: Flags, complaint: str, do: Do, flags: Flags) -> None:
    asked = flags | {"montage__kind": ("optimized",), "layer": ("conv3",)} | how
    with pytest.raises(UsageError, match=complaint):
        do("montage", **asked)


def test_sorting_needs_topk(do: Do, flags: Flags) -> None:
    (Path(flags["run"]) / "topk.h5").unlink()
    with pytest.raises(UsageError, match=r"topk\.h5"):
        chosen(do, flags, montage__sort="max")


def test_pages_are_alike_and_old_ones_go(
    do: Do, flags: Flags, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags |= {"montage__kind": ("optimized",), "layer": ("conv3",)}
    side = read(flags, "conv3", "3/image").shape[2]
    with monkeypatch.context() as small:
        small.setattr(sheets, "PAGE", 2 * (side + 25) * (side + 8))
        do("montage", **flags | {"figure__pdf": True})
    names = ("conv3", "conv3_page2")
    pages = [f"optimized/{name}.{end}" for name in names for end in ("pdf", "png")]
    assert figures(flags) == sorted(pages)
    assert record(flags, "optimized/conv3_page2.png")["units"] == [40]
    do("montage", **flags | {"figure__pdf": True})
    assert figures(flags) == ["optimized/conv3.pdf", "optimized/conv3.png"]


def test_scale_and_resolution(do: Do, flags: Flags) -> None:
    flags |= {"montage__kind": ("optimized",), "layer": ("fc8",), "units": "9"}
    do("montage", **flags | {"figure__scale": 0.5, "figure__dpi": 300})
    value = read(flags, "fc8", "3/activation")[1]
    tile = stretched(read(flags, "fc8", "3/image")[1, int(value.argmax())])
    half = tile.reshape(56, 2, 56, 2, 3).mean(axis=(1, 3))
    assert places(opened(flags, "optimized/fc8.png"), np.rint(half).astype(np.uint8))
    with Image.open(Path(flags["run"]) / "figures" / "optimized" / "fc8.png") as image:
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_class_names_stand_under_patches(do: Do, flags: Flags, tmp_path: Path) -> None:
    flags |= {"montage__kind": ("top",), "layer": ("fc8",), "units": "9"}
    do("montage", **flags)
    plain = opened(flags, "top/fc8.png")
    (tmp_path / "names.txt").write_text("cat lion, king of beasts\nnight_train owl\n")
    do("montage", **flags | {"figure__classes": str(tmp_path / "names.txt")})
    renamed = opened(flags, "top/fc8.png")
    assert plain.shape == renamed.shape
    rows, columns = (plain != renamed).any(axis=-1).nonzero()
    assert len(rows)
    assert columns.min() >= 3 * 113, "only under the patches, at the right"


def test_names_of_classes(tmp_path: Path) -> None:
    imagenet, own = ["n01440764", "n01443537"], ("tench", "goldfish")
    assert class_names(imagenet, (), None) == ["tench", "goldfish"]
    assert class_names(imagenet, ("one", "two", "three"), None) == ["tench", "goldfish"]
    assert class_names(["n02086240", "polar_bear"], own, None) == ["Shih-Tzu", "polar bear"]
    assert class_names(["n00000001", "n00000002"], own, None) == ["tench", "goldfish"]
    assert class_names(["n00000001", "n01443537"], (), None) == ["n00000001", "goldfish"]
    assert class_names(["polar_bear"], ("tench",), None) == ["polar bear"]
    words = tmp_path / "words.txt"
    words.write_text("n01443537 goldfish, Carassius auratus\nn01440764\ttench, Tinca tinca\n")
    assert class_names(imagenet, (), str(words)) == ["tench", "goldfish"]
    words.write_text("one\ntwo\n\n")
    assert class_names(imagenet, (), str(words)) == ["one", "two"]
    words.write_text("one\ntwo\nthree\n")
    with pytest.raises(UsageError, match="3 lines"):
        class_names(imagenet, (), str(words))


def test_numbers_are_the_networks_classes_only_if_they_are_all_of_them() -> None:
    own = tuple(f"class {chr(97 + n)}" for n in range(12))
    numbers = sorted(map(str, range(12)))  # 0, 1, 10, 11, 2, ...
    assert class_names(numbers, own, None) == [own[int(number)] for number in numbers]
    assert class_names(numbers[1:], own, None) == numbers[1:]
    assert class_names(numbers, own[1:], None) == numbers


def test_every_id_of_imagenet_has_torchvisions_name() -> None:
    names = imagenet_names()
    assert len(names) == 1000
    assert list(names) == sorted(names)
    known = {"n01440764": "tench", "n02086240": "Shih-Tzu", "n15075141": "toilet tissue"}
    assert names.items() >= known.items()


def test_figures_do_not_need_the_weights(do: Do, flags: Flags) -> None:
    """The run directory has everything needed about the network."""
    manifest = Path(flags["run"]) / "run.json"
    known = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**known, "weights": "/gone/weights.pth"}))
    with open_session(
        Plan.make(None, flags | {"montage__kind": ("optimized",)}),
        Report(quiet=True),
        new=False,
        weights=False,
    ) as session:
        assert [layer.alias for layer in session.network.layers][-1] == "fc8"
        STAGES["montage"](session)
    assert "optimized/fc8.png" in figures(flags)


def test_styles_and_unit_show_every_style_that_the_run_has(do: Do, flags: Flags) -> None:
    """Named as in the file, natural first; a flag chooses."""
    with altered(Path(flags["run"]) / "optimized" / "fc8.h5") as file:
        file.copy("3", "natural")
        file.copy("3", "fourier")
    flags |= {"layer": ("fc8",), "units": "9"}
    do("montage", **flags | {"montage__kind": ("styles", "unit")})
    held = ["natural", "1", "3", "fourier"]
    assert [each["style"] for each in record(flags, "styles/fc8_0009.png")["styles"]] == held
    assert [each["style"] for each in record(flags, "unit/fc8_0009.png")["optimized"]] == held
    do("montage", **flags | {"montage__kind": ("unit",), "montage__style": ("fourier", "1")})
    chosen = [each["style"] for each in record(flags, "unit/fc8_0009.png")["optimized"]]
    assert chosen == ["fourier", "1"]


def test_fewer_units_than_asked_for_are_explained(
    flags: Flags, capsys: pytest.CaptureFixture[str]
) -> None:
    flags |= {"montage__kind": ("optimized",), "layer": ("fc8",), "montage__random": 6}
    with open_session(Plan.make(None, flags), Report()) as session:
        STAGES["montage"](session)
    assert "fc8: --random 6: has 3 to show" in capsys.readouterr().err
    assert len(record(flags, "optimized/fc8.png")["units"]) == 3
    units = {"units": ",".join(map(str, record(flags, "optimized/fc8.png")["units"][:2]))}
    with open_session(Plan.make(None, flags | units), Report()) as session:
        STAGES["montage"](session)
    assert "fc8: --random 6: --units leaves 2 to show" in capsys.readouterr().err


def test_small_tiles_are_enlarged_unless_a_scale_is_given(do: Do, flags: Flags) -> None:
    """Tiles of 37 pixels are drawn twice as large, each pixel as a square."""
    flags |= {"montage__kind": ("optimized",), "layer": ("conv3",), "units": "9"}
    value = read(flags, "conv3", "3/activation")[1]
    tile = stretched(read(flags, "conv3", "3/image")[1, int(value.argmax())])
    times = -(-64 // max(tile.shape[:2]))
    assert times > 1
    del flags["figure__scale"]
    do("montage", **flags)
    large = tile.repeat(times, axis=0).repeat(times, axis=1)
    assert len(places(opened(flags, "optimized/conv3.png"), large)) == 1


def test_units_are_sorted_by_their_scores_and_have_their_names(do: Do, flags: Flags) -> None:
    run, kind = Path(flags["run"]), {"montage__kind": ("optimized",), "layer": ("conv3",)}
    with pytest.raises(UsageError, match=r"has no score of these units of conv3; run cnnvis score"):
        do("montage", **flags | kind | {"montage__sort": "score"})
    scores = {2: "0.5", 9: "0.75", 40: "nan"}
    lines = ["unit\texplanation\tscore"]
    for unit, score in scores.items():
        lines += [f"conv3/{unit:04d}\timages\t{score}", f"conv3/{unit:04d}\timages+\t0.{unit:02d}"]
    (run / "scores.tsv").write_text("\n".join(lines) + "\n")
    do("montage", **flags | kind | {"montage__sort": "score"})
    assert record(flags, "optimized/conv3.png")["units"] == [9, 2, 40]
    do("montage", **flags | kind)
    unnamed = opened(flags, "optimized/conv3.png")
    assert "names" not in record(flags, "optimized/conv3.png")
    (run / "names.tsv").write_text("unit\tname\nconv3/0002\tnight train\nconv3/0009\tunnamed\n")
    do("montage", **flags | kind)
    assert record(flags, "optimized/conv3.png")["names"]
    assert not np.array_equal(opened(flags, "optimized/conv3.png"), unnamed)
    do("montage", **flags | kind | {"units": "9,40"})
    assert "names" not in record(flags, "optimized/conv3.png")


def test_a_new_figure_leaves_no_paper_of_the_old_one(do: Do, flags: Flags) -> None:
    kind = {"montage__kind": ("optimized",), "layer": ("conv3",)}
    do("montage", **flags | kind | {"figure__paper": True, "units": "2,9"})
    suffixes = {Path(name).suffix for name in figures(flags)}
    assert suffixes == {".png", ".pdf", ".txt", ".tex"}
    do("montage", **flags | kind)
    assert figures(flags) == ["optimized/conv3.png"]


def test_units_without_a_score_are_told(
    do: Do, flags: Flags, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(flags["run"])
    (run / "scores.tsv").write_text("unit\texplanation\tscore\nconv3/0009\timages\t0.5\n")
    wanted = {"montage__kind": ("optimized",), "layer": ("conv3",), "montage__sort": "score"}
    with open_session(Plan.make(None, flags | wanted), Report()) as session:
        STAGES["montage"](session)
    assert "conv3: 2 of 3 units have no score and come last" in capsys.readouterr().err


def texts(flags: Flags, kind: str, alias: str) -> list[str]:
    """Return the words on the first figure of a layer, line by line."""
    with open_session(Plan.make(None, flags | {"layer": (alias,)}), Report(quiet=True)) as session:
        ((figure, *_), *_) = KINDS[kind].make(session, session.layers)
        return [mark.text for mark in figure.draw().marks if isinstance(mark, TextLine)]


def test_a_figure_says_how_images_compare_with_the_best_of_the_dataset(flags: Flags) -> None:
    with h5py.File(Path(flags["run"]) / "topk.h5") as file:
        best = file["layers/conv3/activation"][()][:, 0]
    ratio = read(flags, "conv3", "1/activation").max(axis=1)[1] / best[9]
    flags |= {"units": "9", "montage__style": ("1",)}
    for kind in ("styles", "unit"):
        said = texts(flags, kind, "conv3")
        assert any(text.startswith(f"style 1, {ratio:.1f}x") for text in said)
        assert "1.0x: the unit's value for the best of 12 images" in " ".join(said)
    preferred = int(ratio >= 1)
    note = " ".join(texts(flags, "optimized", "conv3"))
    assert f"{preferred} of 1 live units prefer their image to the best of 12 images" in note
    Path(flags["run"], "topk.h5").unlink()
    assert " 1 live unit" not in " ".join(texts(flags, "optimized", "conv3"))


def test_what_has_not_left_its_noise_says_so(flags: Flags) -> None:
    """Unit 2's best image is its start; unit 9's is that, fainter; unit 40's is another."""
    first = {}
    for unit in (2, 9):
        drawn = noise(
            seed_of(0, Unit("conv3", unit), 0), read(flags, "conv3", "3/image").shape[2:4]
        )
        first[unit] = drawn.permute(1, 2, 0).numpy()
    with altered(Path(flags["run"]) / "optimized" / "conv3.h5") as file:
        group = file["3"]
        value = np.zeros((3, 5), np.float32)
        value[:, 0] = 1
        group["activation"][...] = value
        group["outcome"][...] = 1
        group["best_step"][...] = np.array([[0], [7], [7]])
        group["image"][1, 0] = first[9] / 20 + np.float32(0.1)
        group["image"][2, 0] = -first[9]
    flags |= {"montage__style": ("3",)}
    said = texts(flags, "optimized", "conv3")
    assert {"2 (noise)", "9 (noise)", "40"} <= set(said)
    assert "(noise): it has not left the noise that it began with." in " ".join(said)
    assert any(
        text.endswith("(noise)") for text in texts(flags | {"units": "9"}, "styles", "conv3")
    )
    said = texts(flags | {"units": "40"}, "styles", "conv3")
    assert not any("(noise)" in text for text in said)


def test_styles_stand_in_their_order_whatever_is_maximised() -> None:
    held = ["1", "2-mean", "accent-mean", "fourier", "natural-mean-min", "soft-mean"]
    first = ["natural-mean-min", "1", "2-mean", "accent-mean", "fourier", "soft-mean"]
    assert ordered_styles(held) == first


def test_where_a_unit_first_led_is_shown_beside_its_best(do: Do, flags: Flags) -> None:
    wanted = {"optimize__style": ("3",), "optimize__majority": True, "optimize__iterations": 12}
    flags |= {"layer": ("conv1",), "units": "0,1"}
    do("optimize", **flags, **wanted, model="demo")
    with pytest.raises(UsageError, match="style 3 of another plan: majority is true there, null"):
        do("optimize", **flags, **wanted | {"optimize__majority": False}, model="demo")
    steps, first = read(flags, "conv1", "3/majority_step"), read(flags, "conv1", "3/majority")
    assert steps.max() > -1
    unit = int(steps[:, 0].argmax())
    do("montage", **flags, montage__kind=("styles",))
    sheet = opened(flags, f"styles/conv1_{unit:04d}.png")
    value = read(flags, "conv1", "3/activation")
    assert steps[unit, 0] < read(flags, "conv1", "3/best_step")[unit, 0]
    assert value[unit, 0] > read(flags, "conv1", "3/start")[unit, 0]
    ((_, best),) = places(sheet, stretched(read(flags, "conv1", "3/image")[unit, 0]))
    ((_, led),) = places(sheet, stretched(first[unit, 0]))
    assert best < led
    said = texts(flags | {"units": str(unit)}, "styles", "conv1")
    assert f"3, leads from step {steps[unit, 0]}" in said
