"""Preprocessing of a plan: what is refused, what is in doubt, and what files say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cnnvis_cli.dataset.decode_on_gpu import check_decoder
from cnnvis_cli.errors import UsageError
from cnnvis_cli.nouns import Preprocessing
from cnnvis_cli.settings import PreprocessingPlan
from cnnvis_cli.stages.common.preprocessing import check_doubts, preprocess, recorded


def said(grey: bool = False, **asked: Any) -> list[str]:
    """Return what is said of a plan's preprocessing; raise what is raised."""
    lines: list[str] = []
    plan = PreprocessingPlan(**asked)
    check_doubts(plan, preprocess(Preprocessing(), plan, grey), lines.append)
    return lines


@pytest.mark.parametrize("std", [(0.229, 0.224, 0.225), (0.5, 0.5, 0.5), (0.999, 0.1, 0.2)])
@pytest.mark.parametrize("mean", [(0.485, 0.456, 0.406), (123.0, 116.0, 103.0), None])
def test_deviations_of_torchvision_s_units_are_refused(std: Any, mean: Any) -> None:
    with pytest.raises(UsageError, match=r"less than a grey level; .* 0 to 255; multiply"):
        said(std=std, mean=mean)


@pytest.mark.parametrize(
    "asked",
    [
        {"mean": (0.485, 0.456, 0.406)},
        {"mean": (0.5, 0.5, 0.5), "std": (127.5, 127.5, 127.5)},
        {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
        {"mean": (1.0, 0.0, 0.0), "std": (58.0, 57.0, 57.0)},
    ],
)
def test_means_of_torchvision_s_units_are_told_in_one_line(asked: Any) -> None:
    (line,) = said(**asked)
    assert line.endswith("multiply the numbers of torchvision and timm by 255")


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"mean": (0.0, 0.0, 0.0), "std": (255.0, 255.0, 255.0)},
        {"mean": (123.0, 116.0, 103.0), "std": (1.0, 1.0, 1.0)},
        {"mean": (-1.0, 0.0, 2.0)},
        {"resize": 224, "crop": 224},
        {"resize": (300, 400), "crop": (300, 400)},
    ],
)
def test_usual_numbers_are_not_spoken_of(asked: Any) -> None:
    assert said(**asked) == []


@pytest.mark.parametrize("std", [(0.0, 0.0, 0.0), (58.0, 0.0, 57.0), (58.0, -1.0, 57.0)])
def test_a_deviation_that_is_not_above_0_is_refused(std: Any) -> None:
    with pytest.raises(UsageError, match=r"std = \[.*\]: every deviation must be above 0"):
        said(std=std)


@pytest.mark.parametrize(
    ("resize", "crop"), [(200, 224), (None, 300), ((200, 300), 224), ((300, 200), (224, 224))]
)
def test_a_crop_larger_than_the_image_is_refused(resize: Any, crop: Any) -> None:
    with pytest.raises(UsageError, match=r"crop = \[.*larger than the resized image.* make resize"):
        said(resize=resize, crop=crop)


def test_a_crop_that_is_larger_than_some_images_is_told() -> None:
    (line,) = said(resize=224, crop=(224, 320))
    assert "longer side is below 320 pixels" in line


def test_a_grey_network_has_one_mean() -> None:
    plan = PreprocessingPlan(mean=(33.0,), std=(78.0,))
    found = preprocess(Preprocessing(), plan, grey=True)
    assert (found.mean, found.std, found.grey) == ((33.0,) * 3, (78.0,) * 3, True)
    usual = preprocess(Preprocessing(), PreprocessingPlan(), grey=True)
    assert usual.mean == pytest.approx((114.495,) * 3)
    with pytest.raises(UsageError, match="mean needs one number, as the network takes grey"):
        said(grey=True, mean=(1.0, 2.0, 3.0))
    with pytest.raises(UsageError, match="grey = false, but the network takes grey images"):
        preprocess(Preprocessing(), PreprocessingPlan(grey=False), grey=True)
    with pytest.raises(UsageError, match="mean needs three numbers"):
        said(mean=(33.0,))


def test_files_of_colour_networks_say_what_they_always_said() -> None:
    assert "grey" not in recorded(Preprocessing())
    assert recorded(Preprocessing(grey=True))["grey"] is True
    assert recorded(Preprocessing())["crop"] == [224, 224]


def test_upright_is_recorded_only_where_it_is_asked_for() -> None:
    """So the files of other runs keep their bytes."""
    plain = preprocess(Preprocessing(), PreprocessingPlan())
    turned = preprocess(Preprocessing(), PreprocessingPlan(upright=True))
    assert recorded(turned) == {**recorded(plain), "upright": True}
    assert "upright" not in recorded(plain)
    with pytest.raises(UsageError, match="--decode gpu: turns no images upright"):
        check_decoder(torch.device("cuda"), turned)
