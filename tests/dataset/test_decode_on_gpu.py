"""Decoding where the network runs: what Pillow gives, to a grey level or so; tried on the CPU."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnnvis_cli.dataset.batches import Batches
from cnnvis_cli.dataset.decode import decode, is_plain_jpeg
from cnnvis_cli.dataset.decode_on_gpu import check_decoder, decode_on_gpu
from cnnvis_cli.dataset.kinds import Unreadable
from cnnvis_cli.dataset.manifest import Manifest
from cnnvis_cli.errors import UsageError
from cnnvis_cli.nouns import Preprocessing

try:
    import torchcodec.decoders  # noqa: F401
except (ImportError, OSError, RuntimeError) as error:  # missing, or of another torch
    pytest.skip(f"torchcodec cannot be used ({error})", allow_module_level=True)
CPU = torch.device("cpu")
SHAPE = Preprocessing(resize=48, crop=(40, 40))


def encoded(picture: Image.Image, kind: str, **options: int) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def smooth(seed: int, width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


JPEGS = [encoded(smooth(i, 120 - 9 * i, 70 + 11 * i), "JPEG", quality=92) for i in range(6)]


def test_jpegs_are_what_pillow_makes_of_them_within_a_grey_level_or_so() -> None:
    for content, found in zip(JPEGS, decode_on_gpu(JPEGS, SHAPE, CPU), strict=True):
        assert isinstance(found, torch.Tensor)
        wanted = decode(content, SHAPE)
        assert found.shape == wanted.shape
        assert found.dtype == torch.uint8
        assert np.abs(found.numpy().astype(int) - wanted).mean() < 1


def test_what_is_no_plain_jpeg_goes_through_the_other_decoder() -> None:
    picture = smooth(1, 90, 80)
    others = [
        encoded(picture, "PNG"),
        encoded(picture.convert("CMYK"), "JPEG"),
        b"",
        b"nothing",
        JPEGS[0][: len(JPEGS[0]) // 2],
    ]
    assert not any(map(is_plain_jpeg, others))
    assert all(map(is_plain_jpeg, [*JPEGS, encoded(picture.convert("L"), "JPEG")]))
    for content, found in zip(others[:2], decode_on_gpu(others[:2], SHAPE, CPU), strict=True):
        assert isinstance(found, torch.Tensor)
        assert np.array_equal(found.numpy(), decode(content, SHAPE))
    for found in decode_on_gpu(others[2:], SHAPE, CPU):
        assert isinstance(found, Unreadable)


def test_a_broken_jpeg_spoils_no_other_one() -> None:
    broken = JPEGS[1][:60] + b"\xff\xd9"
    found = decode_on_gpu([JPEGS[0], broken, JPEGS[2]], SHAPE, CPU)
    assert isinstance(found[1], Unreadable)
    for content, image in ((JPEGS[0], found[0]), (JPEGS[2], found[2])):
        assert isinstance(image, torch.Tensor)
        (alone,) = decode_on_gpu([content], SHAPE, CPU)
        assert isinstance(alone, torch.Tensor)
        assert torch.equal(image, alone)


def test_a_grey_jpeg_has_three_equal_colours() -> None:
    (found,) = decode_on_gpu([encoded(smooth(0, 80, 80).convert("L"), "JPEG")], SHAPE, CPU)
    assert isinstance(found, torch.Tensor)
    assert (found[..., 0] == found[..., 1]).all()
    assert (found[..., 0] == found[..., 2]).all()


def test_a_picture_that_resizing_would_make_a_bomb_of_is_refused() -> None:
    thin = encoded(Image.new("RGB", (30_000, 1)), "JPEG")
    (found,) = decode_on_gpu([thin], Preprocessing(resize=2000, crop=(40, 40)), CPU)
    assert isinstance(found, Unreadable)
    assert "too thin" in str(found)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_that_are_decoded_there(workers: int, tmp_path: Path) -> None:
    for number, content in enumerate(JPEGS):
        (tmp_path / f"{number}.jpg").write_bytes(content if number != 2 else b"nothing")
    manifest = Manifest.scan(tmp_path)
    here = list(Batches(manifest, SHAPE, 4).read(range(2)))
    there = list(Batches(manifest, SHAPE, 4, workers, gpu=CPU).read(range(2)))
    for a, b in zip(here, there, strict=True):
        assert (a.number, a.first, a.failures) == (b.number, b.first, b.failures)
        for name in ("used", "crcs", "labels"):
            assert np.array_equal(getattr(a, name), getattr(b, name))
        assert b.contents == ()
        assert b.pixels.shape == a.pixels.shape
        assert (a.pixels.float() - b.pixels.float()).abs().mean() < 1
        assert not b.pixels[torch.from_numpy(~b.used)].any()


def test_a_cpu_is_no_gpu() -> None:
    with pytest.raises(UsageError, match="no GPU"):
        check_decoder(CPU, SHAPE)
    with pytest.raises(UsageError, match="lanczos"):
        check_decoder(CPU, Preprocessing(interpolation="lanczos"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_a_gpu() -> None:
    device = torch.device("cuda")
    check_decoder(device, SHAPE)
    for content, found in zip(JPEGS, decode_on_gpu(JPEGS, SHAPE, device), strict=True):
        assert isinstance(found, torch.Tensor)
        assert found.device.type == "cuda"
        assert np.abs(found.cpu().numpy().astype(int) - decode(content, SHAPE)).mean() < 2
