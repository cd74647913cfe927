"""From file to pixels: torchvision's own transforms, and every file that one may meet."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torchvision import transforms

from cnnvis_cli.arrays import Pixels
from cnnvis_cli.dataset.decode import Unreadable, decode, formats, prepare, write_png
from cnnvis_cli.errors import StorageError
from cnnvis_cli.nouns import Interpolation, Preprocessing

SMALL = Preprocessing(resize=16, crop=(16, 16))
AS_IT_IS = Preprocessing(resize=(8, 8), crop=(8, 8))  # for files of 8 x 8 pixels


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def png(depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return an 8 x 8 PNG file written by hand."""
    header = struct.pack(">IIBBBBB", 8, 8, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


@pytest.mark.parametrize("size", [(40, 60), (61, 37), (16, 16), (12, 30), (300, 17)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize", [16, 20, (18, 25)])
def test_it_is_torchvision_s_evaluation_transform(
    size: tuple[int, int],
    interpolation: Interpolation,
    resize: int | tuple[int, int],
    tmp_path: Path,
) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(jpeg(noise(*size)))
    reference = transforms.Compose(
        [
            transforms.Resize(resize, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop((14, 16)),
        ]
    )
    wanted = np.asarray(reference(Image.open(path).convert("RGB")))
    found = decode(path.read_bytes(), Preprocessing(resize, (14, 16), interpolation=interpolation))
    assert found.dtype == np.uint8
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("size", [(5, 3), (16, 4)])
def test_a_crop_larger_than_the_image_is_padded_as_in_torchvision(
    size: tuple[int, int], tmp_path: Path
) -> None:
    path = tmp_path / "image.png"
    noise(*size).save(path)
    reference = transforms.Compose([transforms.Resize(4), transforms.CenterCrop(20)])
    wanted = np.asarray(reference(Image.open(path)))
    assert np.array_equal(decode(path.read_bytes(), Preprocessing(4, (20, 20))), wanted)


def test_cmyk(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    image = noise(8, 8).convert("CMYK")
    image.save(path, "JPEG", quality=100)
    wanted = np.asarray(Image.open(path).convert("RGB"))
    assert wanted.std() > 10
    assert np.array_equal(decode(path.read_bytes(), AS_IT_IS), wanted)


@pytest.mark.parametrize("kind", ["one transparent colour", "alpha for each colour"])
def test_a_palette_with_transparency_keeps_its_colours(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    colours = np.random.default_rng(0).integers(0, 256, (64, 3)).astype(np.uint8)
    rows = b"".join(b"\x00" + bytes(range(8 * r, 8 * r + 8)) for r in range(8))
    alpha = b"\xff\xff\x00" if kind == "one transparent colour" else bytes(range(0, 256, 4))
    path.write_bytes(png(8, 3, rows, (b"PLTE", colours.tobytes()), (b"tRNS", alpha)))
    assert np.array_equal(decode(path.read_bytes(), AS_IT_IS), colours.reshape(8, 8, 3))


def test_sixteen_bit_grey_is_scaled_and_not_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    levels = np.linspace(0, 65535, 64).astype(">u2").reshape(8, 8)
    path.write_bytes(png(16, 0, b"".join(b"\x00" + row.tobytes() for row in levels)))
    found = decode(path.read_bytes(), AS_IT_IS)
    assert np.array_equal(found, np.repeat((levels // 256).astype(np.uint8)[..., None], 3, axis=2))


def test_sixteen_bit_grey_of_other_formats(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    wanted = np.repeat((levels // 256).astype(np.uint8)[..., None], 3, axis=2)
    Image.fromarray(levels).save(tmp_path / "image.tiff")
    (tmp_path / "image.pgm").write_bytes(b"P5 8 8 65535\n" + levels.astype(">u2").tobytes())
    for name in ("image.tiff", "image.pgm"):
        assert np.array_equal(decode((tmp_path / name).read_bytes(), AS_IT_IS), wanted)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "1", "P"])
def test_other_modes_are_pillow_s_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    noise(8, 8).convert(mode).save(path)
    assert np.array_equal(
        decode(path.read_bytes(), AS_IT_IS), np.asarray(Image.open(path).convert("RGB"))
    )


def test_transparency_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    pixels = np.dstack([np.asarray(noise(8, 8)), np.zeros((8, 8), np.uint8)])
    Image.fromarray(pixels).save(path)
    assert np.array_equal(decode(path.read_bytes(), AS_IT_IS), pixels[..., :3])


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    path = tmp_path / "image.gif"
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("#c00000", "#00c000", "#0000c0")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert decode(path.read_bytes(), AS_IT_IS).reshape(-1, 3).tolist() == [[0xC0, 0, 0]] * 64


def test_the_camera_s_rotation_is_ignored(tmp_path: Path) -> None:
    image = noise(16, 24)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.save(tmp_path / "plain.jpg")
    turned, plain = (
        decode((tmp_path / f"{n}.jpg").read_bytes(), SMALL) for n in ("turned", "plain")
    )
    assert np.array_equal(turned, plain)


def broken() -> dict[str, bytes]:
    """Contents that no image can be read from."""
    content = jpeg(noise(40, 60))
    random = b"".join(b"\x00" + row.tobytes() for row in np.asarray(noise(8, 8)))
    return {
        "empty": b"",
        "text": b"<html>404 Not Found</html>",
        "truncated": content[: len(content) * 2 // 3],
        "header only": content[:30],
        "broken": content[:2] + b"\x00" * 50 + content[52:],
        "truncated png": png(8, 2, random)[:-100],
        "damaged png": png(8, 2, random).replace(b"IDAT", b"IDAU"),
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
    }


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("kind", broken())
def test_what_is_no_image_is_unreadable_with_a_reason(kind: str, fast: bool) -> None:
    reasons = []
    for _ in range(2):
        with pytest.raises(Unreadable) as found:
            decode(broken()[kind], SMALL, fast)
        reasons.append(str(found.value))
    assert reasons[0]
    assert reasons[0] == reasons[1]
    assert len(reasons[0].splitlines()) == 1
    assert "\t" not in reasons[0]
    assert " at 0x" not in reasons[0]


def test_what_is_no_image_is_called_so() -> None:
    with pytest.raises(Unreadable, match="no image that can be recognized"):
        decode(b"not an image", Preprocessing())


def test_an_empty_file_is_called_so() -> None:
    with pytest.raises(Unreadable, match="is empty"):
        decode(b"", SMALL)


def early(side: int, height: int, width: int) -> int:
    """Return the largest denominator that leaves both sides of a JPEG at least `side` long."""
    return max(d for d in (1, 2, 4, 8) if d == 1 or min(height, width) >= side * d)


@pytest.mark.parametrize("width", [129, 128, 127, 65, 64, 63, 33, 32, 31, 16, 9])
@pytest.mark.parametrize("resize", [16, (16, 16)])
def test_fast_decoding_shrinks_a_jpeg_as_far_as_the_size_allows(
    width: int, resize: int | tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    def look(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
        seen.append(image.size)
        return prepare(image, preprocessing)

    monkeypatch.setattr("cnnvis_cli.dataset.decode.prepare", look)
    decode(jpeg(noise(140, width)), Preprocessing(resize, (16, 16)), fast=True)
    denominator = early(16, 140, width)
    assert seen == [(-(-width // denominator), -(-140 // denominator))]


def test_a_shape_needs_both_its_sides() -> None:
    content = jpeg(noise(64, 200))
    for resize in ((40, 20), (20, 150), (33, 16)):  # height or width is too small for 1/2
        shape = Preprocessing(resize, (16, 16))
        assert np.array_equal(decode(content, shape, fast=True), decode(content, shape))


@given(st.integers(1, 31), st.integers(1, 90), st.sampled_from(["RGB", "L", "CMYK"]))
@settings(max_examples=25, deadline=None)
def test_fast_decoding_leaves_small_jpegs_alone(height: int, width: int, mode: str) -> None:
    content = jpeg(noise(height, width).convert(mode))
    assert np.array_equal(decode(content, SMALL, fast=True), decode(content, SMALL))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM"])
def test_fast_decoding_leaves_other_formats_alone(kind: str) -> None:
    buffer = io.BytesIO()
    noise(200, 150).save(buffer, kind)
    content = buffer.getvalue()
    assert np.array_equal(decode(content, SMALL, fast=True), decode(content, SMALL))


def test_fast_decoding_is_close_to_exact_decoding() -> None:
    content = jpeg(noise(300, 200))
    fast, exact = (decode(content, SMALL, fast=f).astype(int) for f in (True, False))
    assert 0 < np.abs(fast - exact).mean() < 6  # grey levels of 255


def test_a_decompression_bomb_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image.png"
    noise(40, 40).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 800)
    assert decode(path.read_bytes(), SMALL).shape == (16, 16, 3)
    for limit in (799, 700):  # above twice of it Pillow refuses
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(Unreadable, match="bomb"):
            decode(path.read_bytes(), SMALL)


def tiff(side: int, content: bytes) -> bytes:
    """Return a TIFF of 8 x 8 pixels in one deflated tile of `side` x `side`."""
    tags = {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 0}
    tags[325], tags[324] = len(content), 8 + 2 + 12 * 10 + 4
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + rows + bytes(4) + content


def test_tiles_much_larger_than_the_image_are_never_unpacked() -> None:
    """Two megabytes of such a file took two gigabytes of memory."""
    assert decode(tiff(16, zlib.compress(bytes(256))), AS_IT_IS).shape == (8, 8, 3)
    with pytest.raises(Unreadable, match=r"bomb: tiles of 26000x26000 pixels"):
        decode(tiff(26_000, zlib.compress(bytes(1 << 20))), AS_IT_IS)


def scanned(side: int, times: int) -> bytes:
    """Return a progressive JPEG whose last scan comes again and again."""
    buffer = io.BytesIO()
    Image.new("L", (side, side)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content[content.rindex(b"\xff\xc4", 0, content.rindex(b"\xff\xda")) : -2]
    return content[:-2] + last * times + b"\xff\xd9"


@pytest.mark.parametrize("fast", [False, True])
def test_a_jpeg_of_endless_scans_is_unreadable(fast: bool) -> None:
    """A third of a megabyte took minutes."""
    assert decode(scanned(64, 500), SMALL, fast).shape == (16, 16, 3)
    with pytest.raises(Unreadable, match=r"bomb: \d+ scans of 4000x4000 pixels"):
        decode(scanned(4000, 300), SMALL, fast)


def test_a_jpeg_of_absurd_size_is_unreadable() -> None:
    content = bytearray(jpeg(noise(8, 8)))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = b"\xff" * 4
    with pytest.raises(Unreadable, match="bomb"):
        decode(bytes(content), SMALL)


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP"])
def test_text_that_unpacks_to_gigabytes_is_unreadable(name: bytes) -> None:
    packed = zlib.compress(bytes(1 << 26))
    rows = b"".join(b"\x00" + bytes(24) for _ in range(8))
    with pytest.raises(Unreadable, match="too large"):
        decode(png(8, 2, rows, (name, b"key\0\0" + packed)), AS_IT_IS)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_of_thousands_of_frames_only_the_first_is_looked_at(kind: str) -> None:
    frames = [Image.new("L", (8, 8), 7 * n % 256) for n in range(500)]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    assert decode(buffer.getvalue(), AS_IT_IS).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"P6 #" + b"x" * 5000 + b"\n8 8 255\n" + bytes(192), "not in its first 4096 bytes"),
        (b"P5 " + b"#\n" * 5000 + b"8 8 255\n" + bytes(64), "not in its first 4096 bytes"),
        (b"P2 9000 9000 255\n" + b"0 " * (1 << 24), "too large for numbers written out"),
    ],
)
def test_a_bitmap_that_is_read_letter_by_letter_is_short(content: bytes, reason: str) -> None:
    """Pillow would take a minute for 256 megabytes of them."""
    with pytest.raises(Unreadable, match=reason):
        decode(content, SMALL)
    assert decode(b"P2 # eight\n8 8\n# levels\n255\n" + b"7 " * 64, SMALL).max() == 7


def test_warnings_are_kept_to_itself_in_every_thread(capfd: pytest.CaptureFixture[str]) -> None:
    """Broken TIFFs make Pillow warn and libtiff print."""
    buffer = io.BytesIO()
    noise(40, 40).save(buffer, "TIFF", compression="tiff_adobe_deflate")
    rng = np.random.default_rng(0)

    def try_some(seed: int) -> None:
        for _ in range(60):
            content = bytearray(buffer.getvalue())
            for place in rng.integers(4, len(content), 9):
                content[place] = rng.integers(256)
            with suppress(Unreadable):
                decode(bytes(content), SMALL)

    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(try_some, range(4)))
    assert capfd.readouterr() == ("", "")
    assert warnings.filters == before


def test_a_reason_is_short_and_printable(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_settings: object) -> None:
        raise ValueError("a\x1b[2J\n\tb\udcff" + "x" * 9999)

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(Unreadable) as found:
        decode(b"content", SMALL)
    assert str(found.value).startswith(r"a\x1b[2J b\udcffxx")
    assert len(str(found.value)) == 200


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    pixels = np.asarray(noise(8, 8))
    write_png(tmp_path / "folder" / "image.png", pixels)
    assert np.array_equal(
        decode((tmp_path / "folder" / "image.png").read_bytes(), AS_IT_IS), pixels
    )


def encoded(image: Image.Image, kind: str, **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "HEIF"])
def test_formats_that_some_pillows_read(kind: str) -> None:
    if kind not in formats():
        pytest.skip(f"this Pillow reads no {kind}, or pillow-heif is missing")
    image = noise(64, 64)
    found = decode(encoded(image, kind, quality=95), Preprocessing((64, 64), (64, 64)))
    assert np.abs(found.astype(int) - np.asarray(image)).mean() < 8


def test_a_large_photograph_is_read() -> None:
    """Pillow warns above 89 million pixels, and refuses above twice of that."""
    content = encoded(Image.new("L", (12_000, 9_000), 77), "JPEG")
    assert decode(content, SMALL, fast=True).mean() == pytest.approx(77, abs=1)
    with pytest.raises(Unreadable, match="bomb"):
        decode(encoded(Image.new("1", (14_000, 13_000)), "PNG"), SMALL)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(("highest", "bits"), [(255, 8), (1000, 10), (4095, 12), (5000, 16)])
def test_twelve_bits_in_sixteen_are_not_black(kind: str, highest: int, bits: int) -> None:
    levels = np.linspace(0, highest, 64).astype(np.uint16).reshape(8, 8)
    found = decode(encoded(Image.fromarray(levels), kind), AS_IT_IS)
    assert np.array_equal(found[..., 0], levels >> (bits - 8))


def test_a_dark_bitmap_that_states_its_largest_value_stays_dark(tmp_path: Path) -> None:
    levels = np.linspace(0, 2000, 64).astype(">u2").reshape(8, 8)
    found = decode(b"P5 8 8 65535\n" + levels.tobytes(), AS_IT_IS)
    assert np.array_equal(found[..., 0], levels >> 8)


@pytest.mark.parametrize("highest", [1.0, 255.0])
def test_fractions_are_from_0_to_1_or_to_255(highest: float) -> None:
    levels = np.linspace(0, highest, 64, dtype=np.float32).reshape(8, 8)
    found = decode(encoded(Image.fromarray(levels), "TIFF"), AS_IT_IS)
    assert np.array_equal(found[..., 0], (levels * (255 / highest)).astype(np.uint8))


UNKNOWN = {
    "negative": np.array([-1.0, 0.5], np.float32),
    "large": np.array([0, 3000], np.float32),
    "no number": np.array([np.nan, 1], np.float32),
    "32 bits": np.array([0, 1 << 20], np.int32),
    "32 bits, negative": np.array([-5, 200], np.int32),
}


@pytest.mark.parametrize("values", UNKNOWN)
def test_values_of_an_unknown_scale_are_a_reason_and_no_picture(values: str) -> None:
    pixels = np.tile(UNKNOWN[values], (8, 4))
    with pytest.raises(Unreadable, match=r"has values from .* to .*, of an unknown scale"):
        decode(encoded(Image.fromarray(pixels), "TIFF"), AS_IT_IS)


def test_twelve_bits_in_sixteen_in_colour_are_a_reason_and_not_black() -> None:
    dark, bright = (np.full((8, 24), value, ">u2") for value in (4095, 40_000))
    rows = [b"".join(b"\0" + row.tobytes() for row in levels) for levels in (dark, bright)]
    with pytest.raises(Unreadable, match="at most 12 bits in 16"):
        decode(png(16, 2, rows[0]), AS_IT_IS)
    assert decode(png(16, 2, rows[1]), AS_IT_IS).min() == 40_000 >> 8


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_upright_where_the_plan_says_so(orientation: int, fast: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(noise(24, 40), "JPEG", exif=exif, quality=95)
    upright = Preprocessing((30, 20), (30, 20), upright=True)
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    wanted = prepare(turned.convert("RGB"), upright)
    assert np.array_equal(decode(content, upright, fast), wanted)
    plain = prepare(Image.open(io.BytesIO(content)).convert("RGB"), SMALL)
    assert np.array_equal(decode(content, SMALL), plain)


@pytest.mark.parametrize(
    ("values", "tags", "words"),
    [
        (np.arange(64, dtype=np.uint16), {262: 0}, "negative of more than 8 bits"),
        (np.linspace(0, 1, 64, dtype=np.float32), {262: 0}, "negative of more than 8 bits"),
        (np.arange(64, dtype=np.uint16), {339: 2}, "signed values"),
        (np.arange(64, dtype=np.uint8), {339: 2}, "signed values"),
    ],
    ids=["16 bits, white is 0", "fractions, white is 0", "signed 16 bits", "signed 8 bits"],
)
def test_a_tiff_whose_numbers_mean_something_else_is_no_picture(
    values: NDArray[Any], tags: dict[int, int], words: str
) -> None:
    held = io.BytesIO()
    Image.fromarray(values.reshape(8, 8)).save(held, "TIFF", tiffinfo=tags)
    with pytest.raises(Unreadable, match=words):
        decode(held.getvalue(), Preprocessing(resize=8, crop=(8, 8)))


def test_a_full_disk_names_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(StorageError, match=r"a/b\.png: cannot be written \(No space left"):
        write_png(tmp_path / "a" / "b.png", np.zeros((2, 2, 3), np.uint8))
