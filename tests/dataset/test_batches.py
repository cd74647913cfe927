"""Batches against one image at a time, and what happens when a worker does not return."""

from __future__ import annotations

import os
import signal
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from cnnvis_cli.dataset.batches import Batch, Batches
from cnnvis_cli.dataset.decode import decode
from cnnvis_cli.dataset.manifest import Manifest
from cnnvis_cli.errors import CnnvisError, StorageError
from cnnvis_cli.nouns import Preprocessing

SMALL = Preprocessing(resize=16, crop=(16, 16))
COUNT, NOTHING, EMPTY = 11, 2, 10  # images; two that cannot be used


@pytest.fixture
def manifest(tmp_path: Path, photographs: Callable[..., Path]) -> Manifest:
    """Eleven images in two classes; one holds no image and one is empty."""
    folder = photographs(tmp_path / "images", COUNT, classes=2)
    paths = sorted(folder.rglob("*.png"))
    paths[NOTHING].write_bytes(b"nothing")
    paths[EMPTY].write_bytes(b"")
    return Manifest.scan(folder)


def read(manifest: Manifest, workers: int = 0) -> list[Batch]:
    return list(Batches(manifest, SMALL, 4, workers).read(range(3)))


def test_batches_are_always_full(manifest: Manifest) -> None:
    assert len(Batches(manifest, SMALL, 4)) == 3
    for number, batch in enumerate(read(manifest)):
        assert (batch.number, batch.first) == (number, 4 * number)
        assert batch.pixels.shape == (4, 16, 16, 3)
        assert batch.pixels.dtype == torch.uint8
        assert batch.crcs.dtype == np.uint32
        for slot in range(4):
            index = batch.first + slot
            usable = index < COUNT and index not in (NOTHING, EMPTY)
            assert batch.used[slot] == usable
            assert batch.crcs[slot] == (zlib.crc32(manifest.read(index)) if index < COUNT else 0)
            assert batch.labels[slot] == (manifest.labels[index] if index < COUNT else -1)
            if usable:
                wanted = decode(manifest.read(index), SMALL)
                assert np.array_equal(batch.pixels[slot].numpy(), wanted)
            else:
                assert not batch.pixels[slot].any()


def test_failures_are_told_with_their_reasons(manifest: Manifest) -> None:
    failures = [batch.failures for batch in read(manifest)]
    assert [sorted(found) for found in failures] == [[NOTHING], [], [EMPTY]]
    assert failures[2] == {EMPTY: "is empty"}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_has_gone_since_it_was_listed_is_no_broken_image(
    manifest: Manifest, workers: int
) -> None:
    place = manifest.root / manifest.path(5)
    place.rename(place.with_suffix(".away"))
    with pytest.raises(StorageError, match=rf"^{place}: cannot be read \(no such file\)"):
        read(manifest, workers)
    place.with_suffix(".away").rename(place)
    assert len(read(manifest, workers)) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_the_order_that_is_asked_for(manifest: Manifest, workers: int) -> None:
    every = read(manifest)
    found = list(Batches(manifest, SMALL, 4, workers).read(iter([2, 0, 2])))
    assert [batch.number for batch in found] == [2, 0, 2]
    for batch in found:
        assert torch.equal(batch.pixels, every[batch.number].pixels)


def test_worker_processes_give_the_same(manifest: Manifest) -> None:
    for one, other in zip(read(manifest), read(manifest, 2), strict=True):
        assert (one.number, one.first) == (other.number, other.first)
        assert torch.equal(one.pixels, other.pixels)
        assert np.array_equal(one.used, other.used)
        assert np.array_equal(one.crcs, other.crcs)
        assert np.array_equal(one.labels, other.labels)
        assert one.failures == other.failures


def test_fast_batches_are_those_of_fast_decoding(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "image.jpg")
    manifest = Manifest.scan(tmp_path)
    (batch,) = Batches(manifest, SMALL, 1, fast=True).read([0])
    assert np.array_equal(batch.pixels[0].numpy(), decode(manifest.read(0), SMALL, fast=True))
    assert not np.array_equal(batch.pixels[0].numpy(), decode(manifest.read(0), SMALL))


@pytest.mark.parametrize(("workers", "ahead"), [(0, 0), (2, 4)])
def test_numbers_are_taken_as_they_are_needed(manifest: Manifest, workers: int, ahead: int) -> None:
    taken = 0

    def numbers() -> Iterator[int]:
        nonlocal taken
        for number in range(9):
            taken += 1
            yield number % 3

    for done, _ in enumerate(Batches(manifest, SMALL, 4, workers).read(numbers()), start=1):
        assert taken <= min(done + ahead, 9)
    assert taken == 9


def test_nothing_is_read_before_it_is_asked_for(manifest: Manifest) -> None:
    Batches(manifest, SMALL, 4).read(iter([99]))  # a number that would be refused


def test_a_batch_that_does_not_exist_is_refused(manifest: Manifest) -> None:
    with pytest.raises(ValueError, match="batch 3: there are 3"):
        list(Batches(manifest, SMALL, 4).read([0, 3]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="pinning has something to do here")
def test_without_a_device_there_is_nothing_to_pin(manifest: Manifest) -> None:
    (batch,) = Batches(manifest, SMALL, 4, pin=True).read([0])
    assert torch.equal(batch.pixels, read(manifest)[0].pixels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinning needs a device")
@pytest.mark.parametrize("workers", [0, 1])
def test_pinned_pixels_are_the_same_pixels(manifest: Manifest, workers: int) -> None:
    for batch in Batches(manifest, SMALL, 4, workers, pin=True).read(range(3)):
        assert batch.pixels.is_pinned()
        assert torch.equal(batch.pixels, read(manifest)[batch.number].pixels)


class Deadly(Preprocessing):
    """Settings whose use ends the process, as when memory runs out."""

    @property
    def crop(self) -> tuple[int, int]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_worker_that_dies_is_an_error_with_a_remedy(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = _MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(look, "__defaults__", (0.2,))  # seconds until it looks for dead workers
    handler = signal.getsignal(signal.SIGCHLD)
    deadly = object.__new__(Deadly)
    with pytest.raises(CnnvisError, match=r"decoding process died .*fewer --workers"):
        list(Batches(manifest, deadly, 4, 1).read([0]))
    assert signal.getsignal(signal.SIGCHLD) == handler
