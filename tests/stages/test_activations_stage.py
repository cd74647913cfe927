"""`activations`: the content of the sheets, the films, and the files of numbers."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from cnnvis_cli.arrays import Pixels
from cnnvis_cli.bench.activations import measure_activations
from cnnvis_cli.dataset.decode import prepare
from cnnvis_cli.dataset.video import Folder, Video
from cnnvis_cli.errors import TooManyUnreadable, UsageError
from cnnvis_cli.figure.film import Film
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.outputs import PROB, choose_outputs, find_outputs, watching
from cnnvis_cli.nouns import Interpolation, Preprocessing
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.session import open_session
from cnnvis_cli.stages.single import video as films
from cnnvis_cli.stages.single.activations import activations, check_activations

SMALL = Preprocessing(resize=112, crop=(112, 112))


class Heard(Report):
    """A report that keeps its output."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.results: list[str] = []
        self.notes: list[str] = []

    def result(self, text: str) -> None:
        self.results.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def show(tmp_path: Path) -> Callable[..., Heard]:
    """A function that runs the stage with the demo network, and returns its output."""

    def run(*images: Path, **flags: Any) -> Heard:
        settings: dict[str, Any] = {"model": "demo", "device": "cpu", "workers": 0}
        settings |= {"run": str(tmp_path / "run"), "activations__image": tuple(map(str, images))}
        heard, plan = Heard(), Plan.make(None, settings | flags)
        check_activations(plan)
        with open_session(plan, heard) as session:
            activations(session)
        return heard

    return run


def picture(seed: int, size: tuple[int, int] = (112, 112)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    picture(1).save(tmp_path / "one.png")
    return tmp_path / "one.png"


def hooked(run: Path, path: Path, module: str) -> NDArray[np.float32]:
    """Return the plain answer: a forward hook on the module, batch of four."""
    flags = {"model": "demo", "device": "cpu", "run": str(run)}
    with open_session(Plan.make(None, flags), Report(quiet=True)) as session:
        network, kept = session.network, []
        batch = np.zeros((4, 112, 112, 3), np.uint8)
        batch[0] = np.asarray(Image.open(path).convert("RGB"))
        handle = network.module.get_submodule(module).register_forward_hook(
            lambda _m, _i, output: kept.append(output)
        )
        with torch.no_grad():
            network.module(network.normalise(network.centre(torch.from_numpy(batch))))
        handle.remove()
    return np.asarray(kept[0][0])


def tile_of(sheet: Pixels, corner: tuple[int, int], number: int, shape: Any, scale: int) -> Any:
    """Return one tile of a sheet in its own size, whose first tile is at a corner."""
    count, height, width = shape
    row, column = divmod(number, int(np.ceil(np.sqrt(count))))
    top, left = corner[0] + row * (height + 1) * scale, corner[1] + column * (width + 1) * scale
    return sheet[top : top + height * scale : scale, left : left + width * scale : scale, 0]


def corner_of(sheet: Pixels, first: Pixels, scale: int) -> tuple[int, int]:
    """Return where a tile is on a sheet, to one grey level."""
    height, width = first.shape
    for top in range(sheet.shape[0] - height * scale):
        for left in range(min(sheet.shape[1] - width * scale, 80)):
            if abs(int(sheet[top, left, 0]) - int(first[0, 0])) > 1:
                continue
            found = sheet[top : top + height * scale : scale, left : left + width * scale : scale]
            if (
                found.shape[:2] == first.shape
                and np.abs(found[..., 0] - first.astype(int)).max() < 2
            ):
                return top, left
    raise AssertionError("the first tile is nowhere")


@pytest.mark.parametrize(("tone", "layer"), [("layer", "conv2"), ("tile", "features.4")])
def test_each_tile_is_a_channel_in_the_stated_tone(
    tone: str, layer: str, show: Callable[..., Heard], image: Path, tmp_path: Path
) -> None:
    show(image, layer=(layer,), activations__tone=tone, activations__scale=2)
    module = {"conv2": "features.3"}.get(layer, layer)
    maps = hooked(tmp_path / "run", image, module)
    signed = bool(maps.min() < 0)
    assert signed == (layer == "conv2")
    axes = None if tone == "layer" else (1, 2)
    high, low = maps.max(axis=axes, keepdims=True), maps.min(axis=axes, keepdims=True)
    divisor = np.maximum(2 * high, -2 * low) if signed else high
    grey = maps / np.where(divisor > 0, divisor, 1) + (0.5 if signed else 0)
    levels = np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8)
    path = tmp_path / "run/figures/activations/one" / f"{layer}.png"
    sheet = np.asarray(Image.open(path))
    first = int(levels.reshape(len(levels), -1).std(axis=1).argmax())
    row, column = divmod(first, int(np.ceil(np.sqrt(len(maps)))))
    down, across = (2 * (side + 1) for side in maps.shape[1:])
    top, left = corner_of(sheet[:, column * across :], levels[first], 2)
    corner = top - row * down, left
    for number in range(len(maps)):
        shown = tile_of(sheet, corner, number, maps.shape, 2).astype(int)
        assert np.abs(shown - levels[number]).max() <= 1


def test_every_layer_has_a_picture_that_says_what_it_is(
    show: Callable[..., Heard], image: Path, tmp_path: Path
) -> None:
    heard = show(image)
    folder = Path(heard.results[0])
    assert folder == tmp_path / "run" / "figures" / "activations" / "one"
    assert heard.results[1:] == [str(folder / f"{name}.png") for name in ("all", "conv1", PROB)]
    files = sorted(folder.iterdir())
    names = {path.stem for path in files}
    assert {"conv1", "features.1", "features.2", "conv2", "fc6", "fc8", PROB, "all"} <= names
    for line in files:
        with Image.open(line) as opened:
            opened.load()
            assert "one" in opened.info["Title"]
            assert ", " in opened.info["Title"].rpartition(" · ")[2]  # the classes


def test_a_rerun_changes_no_byte(
    show: Callable[..., Heard], image: Path, snapshot: Callable[..., Any], tmp_path: Path
) -> None:
    flags: dict[str, Any] = {"activations__save": "h5", "layer": ("conv1", "fc8")}
    first = show(image, **flags)
    before = snapshot(tmp_path / "run")
    assert show(image, **flags).results == first.results
    assert snapshot(tmp_path / "run") == before


def test_the_numbers_are_kept(show: Callable[..., Heard], image: Path, tmp_path: Path) -> None:
    show(image, activations__save="h5", layer=("conv5", "fc8"))
    with h5py.File(tmp_path / "run/activations/one.h5") as file:
        assert file.attrs["format"] == "cnnvis/activations"
        assert set(file) == {"conv5", "fc8", PROB}
        conv5 = hooked(tmp_path / "run", image, "features.10")
        np.testing.assert_allclose(file["conv5"][()], conv5, atol=1e-5)
        scores = file["fc8"][()].astype(np.float64)
        softmax = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        np.testing.assert_allclose(file[PROB][()], softmax, rtol=1e-4, atol=1e-7)


def test_one_channel_over_two_images(
    show: Callable[..., Heard], image: Path, tmp_path: Path
) -> None:
    picture(2).save(tmp_path / "two.png")
    flags: dict[str, Any] = {"activations__compare": True, "activations__unit": ("conv2/3",)}
    heard = show(image, tmp_path / "two.png", **flags)
    assert [Path(line).name for line in heard.results] == ["conv2_0003.png"]
    assert Path(heard.results[0]).parent.name == "one_vs_two"
    sheet = np.asarray(Image.open(heard.results[0])).astype(int)
    shown = [np.asarray(Image.open(p)).astype(int) for p in (image, tmp_path / "two.png")]
    maps = [hooked(tmp_path / "run", p, "features.3")[3] for p in (image, tmp_path / "two.png")]
    top, low = max(m.max() for m in maps), min(m.min() for m in maps)
    for pixels, values in zip(shown, maps, strict=True):
        found = [
            panes
            for y in range(len(sheet) - 448)
            for panes in [[sheet[y : y + 448 : 4, x : x + 448 : 4] for x in (14, 474, 934)]]
            if (panes[0] == pixels).all(axis=2).mean() > 0.8  # all but the frame
        ]
        panes = found[0]
        greys = np.rint(255 * (values / max(2 * top, -2 * low) + 0.5))
        middle = set(np.unique(panes[1]).tolist())
        near = {level + d for level in np.unique(greys).astype(int).tolist() for d in (-1, 0, 1)}
        assert middle <= near
        bright = panes[2].sum() / pixels.sum()
        assert 0.3 <= bright < 1
        row_of, column = divmod(int(values.argmax()), values.shape[1])
        assert values[row_of, column] > 0


def test_images_are_compared_on_one_scale(
    show: Callable[..., Heard], image: Path, tmp_path: Path
) -> None:
    picture(2).save(tmp_path / "two.png")
    flags: dict[str, Any] = {"layer": ("conv2",), "activations__compare": True}
    heard = show(image, tmp_path / "two.png", **flags, activations__scale=1)
    sheet = np.asarray(Image.open(heard.results[0]))
    maps = [hooked(tmp_path / "run", p, "features.3") for p in (image, tmp_path / "two.png")]
    divisor = max(2 * max(m.max() for m in maps), -2 * min(m.min() for m in maps))
    for each in maps:
        levels = np.rint(255 * (each / divisor + 0.5)).astype(int)
        channel = int(levels.reshape(len(levels), -1).std(axis=1).argmax())
        tile, (height, width) = levels[channel], levels.shape[1:]
        windows = np.lib.stride_tricks.sliding_window_view(
            sheet[..., 0].astype(int), (height, width)
        )
        near = np.abs(windows[:, :, 0, :] - tile[0]).max(axis=2) <= 1
        found = [np.abs(windows[y, x] - tile).max() <= 1 for y, x in np.argwhere(near)]
        assert sum(found) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"activations__unit": ("fc8/1",)}, "no map"),
        ({"activations__unit": ("conv1/99",)}, "0 to 31"),
        ({"layer": ("features.99",)}, "features"),
        ({"activations__compare": True}, "2 to 6"),
        ({"activations__every": 0}, "--every"),
        ({"activations__size": 31}, "--size"),
    ],
)
def test_what_cannot_be_is_refused(
    flags: dict[str, Any], message: str, show: Callable[..., Heard], image: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        show(image, **flags)


def test_odd_images_are_shown_and_an_unreadable_one_is_told(
    show: Callable[..., Heard], tmp_path: Path
) -> None:
    base = picture(3)
    folder = tmp_path / "odd"
    folder.mkdir()
    base.convert("RGBA").save(folder / "rgba.png")
    base.convert("CMYK").save(folder / "cmyk.jpg")
    base.convert("P").save(folder / "palette.png")
    grey = np.asarray(base.convert("L")).astype(np.uint16) << 8
    Image.fromarray(grey).save(folder / "deep.png")
    (folder / "broken.png").write_bytes(b"no picture")
    (tmp_path / "again").mkdir()
    base.save(tmp_path / "again" / "rgba.png")
    with pytest.raises(TooManyUnreadable, match="1 of 6"):
        show(folder, tmp_path / "again" / "rgba.png", layer=("fc8",))
    made = sorted(p.parent.name for p in (tmp_path / "run/figures/activations").rglob("fc8.png"))
    assert made == ["again_rgba", "cmyk", "deep", "odd_rgba", "palette"]


class Residual(torch.nn.Module):
    """One rectifier twice, and a sum in place over an output that is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.same = torch.nn.Conv2d(4, 4, 1)
        self.relu = torch.nn.ReLU(inplace=True)
        self.norm = torch.nn.BatchNorm2d(4)
        self.fc = torch.nn.Linear(4, 3)
        self.soft = torch.nn.Softmax(dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.conv(x))
        y = self.norm(self.same(x))
        y += x
        y = self.relu(y)
        out: torch.Tensor = self.soft(self.fc(y.mean(dim=(2, 3))))
        return out


def test_outputs_of_reused_modules_and_before_sums_in_place() -> None:
    torch.manual_seed(0)
    preprocessing = Preprocessing(resize=16, crop=(16, 16))
    network = Network.prepare("residual", Residual(), preprocessing)
    outputs = find_outputs(network)
    names = [output.name for output in outputs]
    assert names == ["conv1", "relu", "conv2", "norm", "relu#2", "fc3", "soft", PROB]
    chosen = choose_outputs(network, outputs, ("relu", "norm", "soft", PROB))
    assert [each.name for each in chosen] == ["relu", "norm", "relu#2", "soft", PROB]
    kept: dict[str, torch.Tensor] = {}
    pixels = torch.randn(2, 3, 16, 16)
    with (
        torch.inference_mode(),
        watching(network, chosen, lambda o, v: kept.update({o.name: v.clone()})) as run,
    ):
        prob = run(pixels)
    module = network.module
    with torch.inference_mode():
        first = module.get_submodule("conv")(pixels).relu()
        norm = module.get_submodule("norm")(module.get_submodule("same")(first))
    torch.testing.assert_close(kept["norm"], norm)
    torch.testing.assert_close(kept["relu#2"], (norm + first).relu())
    assert prob is not None
    torch.testing.assert_close(prob, kept["soft"])  # not the softmax of a softmax
    assert prob.sum(dim=1).tolist() == pytest.approx([1, 1])


# ---- videos


def make_video(path: Path, frames: int, codec: str = "libx264", **options: str) -> list[Pixels]:
    """Return a video of flat colours with a moving square, nearly lossless; gives its frames."""
    shown = []
    with av.open(str(path), "w", options=options) as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.width, stream.height = 128, 96
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        stream.gop_size = 5
        if codec == "libx264":
            stream.options = {"crf": "4", "threads": "1", "bf": "0"}
        for number in range(frames):
            pixels = np.full((96, 128, 3), (60, 90 + 3 * number, 120), np.uint8)
            pixels[20:70, 4 * number % 80 : 4 * number % 80 + 40] = (200, 60, 40)
            shown.append(pixels)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return shown


AS_IS = Preprocessing(resize=96, crop=(96, 96))


def centre(pixels: Pixels) -> NDArray[np.int64]:
    return pixels[:, 16:112].astype(int)


def test_frames_come_back(tmp_path: Path) -> None:
    shown = make_video(tmp_path / "v.mp4", 12)
    video = Video(tmp_path / "v.mp4", every=3)
    frames = list(video.frames(AS_IS))
    assert [frame.number for frame in frames] == [0, 3, 6, 9]
    assert [frame.seconds for frame in frames] == pytest.approx([0, 0.3, 0.6, 0.9])
    assert float(video.rate()) == pytest.approx(10 / 3)
    assert video.expected() == 4
    assert not video.problems
    for frame in frames:
        assert np.abs(frame.pixels - centre(shown[frame.number])).mean() < 4


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "lanczos"])
@pytest.mark.parametrize(
    ("resize", "crop"),
    [(96, (96, 96)), (64, (50, 61)), (131, (130, 99)), ((70, 110), (33, 110)), (40, (64, 64))],
)
def test_frames_are_prepared_as_images_are(
    resize: int | tuple[int, int],
    crop: tuple[int, int],
    interpolation: Interpolation,
    tmp_path: Path,
) -> None:
    """Smooth ones nearly to the grey level, whatever is cut out of what size."""
    smooth = np.add.outer(np.arange(96), np.arange(128))[..., None] * np.array([1.0, 0.7, 0.4])
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv444p"
        frame = av.VideoFrame.from_ndarray(smooth.astype(np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    how = Preprocessing(resize=resize, crop=crop, interpolation=interpolation)
    (shown,) = Video(tmp_path / "v.mp4").frames(how)
    like = prepare(Image.fromarray(smooth.astype(np.uint8)), how)
    assert shown.pixels.shape == like.shape
    assert np.abs(shown.pixels.astype(int) - like).mean() < 3


def test_of_a_broken_tail_the_rest_is_used(show: Callable[..., Heard], tmp_path: Path) -> None:
    whole = tmp_path / "whole.mp4"
    make_video(whole, 30, movflags="faststart")
    broken = tmp_path / "broken.mp4"
    content = whole.read_bytes()
    broken.write_bytes(content[: len(content) * 7 // 10])
    heard = show(broken, layer=("conv5",), batch_size=8)
    (note,) = heard.notes
    assert "of about 30 frames" in note
    rows = (tmp_path / "run/figures/activations/broken/strongest.tsv").read_text().splitlines()
    assert 5 < len(rows) - 1 < 30


@pytest.mark.parametrize("name", ["none.mp4", "text.webm"])
def test_no_video_at_all_is_refused(name: str, show: Callable[..., Heard], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"" if "none" in name else b"no video" * 100)
    with pytest.raises(UsageError, match=name):
        show(tmp_path / name, layer=("conv5",))
    assert not list((tmp_path / "run").rglob("*.mp4"))


def test_a_film_shows_each_frame_beside_its_activations(
    show: Callable[..., Heard], tmp_path: Path, snapshot: Callable[..., Any]
) -> None:
    make_video(tmp_path / "v.mp4", 10)
    flags: dict[str, Any] = {"layer": ("conv2", "fc8"), "batch_size": 4, "activations__every": 2}
    heard = show(tmp_path / "v.mp4", **flags, activations__size=320)
    assert [Path(p).name for p in heard.results] == [
        *("conv2.mp4", "fc8.mp4", "strongest.tsv", "strongest.png")
    ]
    with av.open(heard.results[0]) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert float(container.streams.video[0].average_rate or 0) == 5
    assert len(frames) == 5
    assert frames[0].shape[0] == 320
    (first,) = [f for f in Video(tmp_path / "v.mp4").frames(SMALL) if f.number == 0]
    left = frames[0][10:122, 10:122].astype(int)
    assert np.abs(left - first.pixels).mean() < 12
    table = np.loadtxt(heard.results[2], skiprows=1, delimiter="\t")
    assert table.shape == (5, 6)
    assert table[:, 0].tolist() == [0, 2, 4, 6, 8]
    Image.fromarray(first.pixels).save(tmp_path / "first.png")
    conv2 = hooked(tmp_path / "run", tmp_path / "first.png", "features.3")
    channel = int(conv2.reshape(len(conv2), -1).max(axis=1).argmax())
    assert table[0, 2] == channel
    assert table[0, 3] == pytest.approx(conv2.max(), rel=1e-4)
    before = snapshot(tmp_path / "run")
    show(tmp_path / "v.mp4", **flags, activations__size=320)
    assert snapshot(tmp_path / "run") == before
    Path(heard.results[0]).unlink()
    show(tmp_path / "v.mp4", **flags, activations__size=320)
    again = snapshot(tmp_path / "run")
    assert {k: v[0] for k, v in again.items() if k != "run.json"} == {
        k: v[0] for k, v in before.items() if k != "run.json"
    }


def test_gifs_and_folders_of_frames(show: Callable[..., Heard], tmp_path: Path) -> None:
    many = [picture(seed, (128, 96)) for seed in range(4)]
    many[0].save(tmp_path / "moving.gif", save_all=True, append_images=many[1:], duration=100)
    many[0].save(tmp_path / "still.gif")
    (tmp_path / "frames").mkdir()
    for number, each in enumerate(many):
        each.save(tmp_path / "frames" / f"{number}.png")
    (tmp_path / "frames" / "2.png").write_bytes(b"no picture")
    flags: dict[str, Any] = {"layer": ("conv5",), "activations__frames": True}
    heard = show(
        *(tmp_path / name for name in ("moving.gif", "still.gif", "frames")), **flags, batch_size=4
    )
    made = {
        Path(p).relative_to(tmp_path / "run/figures/activations").as_posix() for p in heard.results
    }
    assert {"moving/conv5.mp4", "still/conv5.png", "frames/conv5.mp4"} <= made
    assert any("2.png" in note and "3 frames" in note for note in heard.notes)
    table = np.loadtxt(tmp_path / "run/figures/activations/frames/strongest.tsv", skiprows=1)
    assert table[:, 0].tolist() == [0, 1, 3]


def test_without_pyav_it_says_how_to_get_it(
    show: Callable[..., Heard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_video(tmp_path / "v.mp4", 3)
    real = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "av":
            raise ImportError("no av")
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match="pip install 'av>=12'"):
        show(tmp_path / "v.mp4", layer=("conv5",))


def test_few_frames_are_held_at_once(
    show: Callable[..., Heard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading
    import weakref

    (tmp_path / "frames").mkdir()
    for number in range(40):
        picture(number).save(tmp_path / "frames" / f"{number:03d}.png")
    living: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
    most, lock, real = [0], threading.Lock(), Folder.frames

    def spied(self: Folder, preprocessing: Preprocessing) -> Any:
        for frame in real(self, preprocessing):
            pixels = frame.pixels.copy()
            with lock:
                living[frame.number] = pixels
                most[0] = max(most[0], len(living))
            yield frame._replace(pixels=pixels)

    monkeypatch.setattr(Folder, "frames", spied)
    monkeypatch.setattr(Film, "add", lambda *_: None)
    monkeypatch.setattr(films, "read_comment", lambda *_: "")
    flags: dict[str, Any] = {"layer": ("conv5",), "activations__frames": True, "workers": 2}
    show(tmp_path / "frames", **flags, batch_size=2)
    cores = 2
    assert most[0] <= 2 * (cores + 5)


def test_a_video_without_one_frame_is_refused(show: Callable[..., Heard], tmp_path: Path) -> None:
    make_video(tmp_path / "whole.mp4", 30, movflags="faststart")
    content = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "head.mp4").write_bytes(content[: content.index(b"mdat") + 12])
    with pytest.raises(UsageError, match="no frame can be decoded"):
        show(tmp_path / "head.mp4", layer=("conv5",))
    assert not list((tmp_path / "run" / "figures").rglob("*.*"))


def test_the_bench_measures_both() -> None:
    plan = Plan.make(None, {"model": "demo", "device": "cpu", "layer": ("conv5",)})
    found = measure_activations(plan, Report(quiet=True), frames=20, rounds=1)
    assert found.ratio > 0
    assert found.record()["frames"] == 20
    assert "ratio" in found.table()
