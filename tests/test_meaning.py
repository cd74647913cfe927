"""How `meaning` matches classes, and its table on the demo network."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch

from cnnvis_cli.errors import UsageError

if TYPE_CHECKING:
    from tests import meaning
    from tests.meaning import ABSENT, Classes, matched
else:
    import meaning
    from meaning import ABSENT, Classes, matched

ANIMALS = ("cat", "tabby, tabby cat", "Great_White-Shark")


def test_classes_are_matched_by_name_in_any_order() -> None:
    other = ("background", "great white shark, man-eater", "Cat", "dog", "Tabby")
    found = matched(Classes("a", 3, ANIMALS), Classes("b", 5, other))
    assert found == [2, 4, 1]
    back = matched(Classes("b", 5, other), Classes("a", 3, ANIMALS))
    assert back == [ABSENT, 2, 0, ABSENT, 1]


def test_a_name_that_either_has_twice_has_no_match() -> None:
    """ImageNet has two cranes and two maillots."""
    one, other = ("crane", "cat", "crane"), ("cat", "crane", "dog")
    assert matched(Classes("a", 3, one), Classes("b", 3, other)) == [ABSENT, 0, ABSENT]
    assert matched(Classes("b", 3, other), Classes("a", 3, one)) == [1, ABSENT, ABSENT]
    assert matched(Classes("a", 3, one), Classes("c", 3, one)) == [0, 1, 2]


def test_an_offset_goes_before_names() -> None:
    assert matched(Classes("a", 3, ANIMALS), Classes("b", 4), 1) == [1, 2, 3]
    assert matched(Classes("a", 3, ANIMALS), Classes("b", 3, ANIMALS[::-1]), 0) == [0, 1, 2]
    for offset in (-1, 2):
        with pytest.raises(UsageError, match=f"--offset {offset}: a has 3 classes, b 4"):
            matched(Classes("a", 3, ANIMALS), Classes("b", 4), offset)


def test_without_names_numbers_must_be_equal() -> None:
    assert matched(Classes("a", 3, ANIMALS), Classes("b", 3)) == [0, 1, 2]
    with pytest.raises(UsageError, match="--offset"):
        matched(Classes("a", 3, ANIMALS), Classes("b", 4))
    with pytest.raises(UsageError, match="--offset"):
        matched(Classes("a", 3, ANIMALS), Classes("b", 4, ("w", "x", "y", "z")))


def test_the_place_of_a_class_among_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge's values are the input's first pixels."""

    class Judge:
        size, device, mean = (2, 2), torch.device("cpu"), torch.zeros(1, 3, 1, 1)

        def normalise(self, images: torch.Tensor) -> torch.Tensor:
            return images

        def module(self, images: torch.Tensor) -> torch.Tensor:
            return images[:, 0].flatten(1)

    images = torch.zeros(3, 3, 2, 2)
    images[:, 0] = torch.tensor([[1.0, 4.0], [3.0, 2.0]])
    images[2, 0, 0, 0] = torch.nan
    judge: Any = Judge()
    found = meaning.ranks(judge, images, torch.zeros(1), torch.tensor([2, ABSENT, 0]))
    assert found.tolist() == [1, 4, 4]
    larger = images[:2].repeat_interleave(8, 2).repeat_interleave(8, 3)
    found = meaning.ranks(judge, larger, torch.zeros(1), torch.tensor([0, 1]))
    assert found.tolist() == [3, 0]


def test_stretched_pictures_use_the_whole_range_about_mid_grey() -> None:
    images = torch.zeros(2, 3, 2, 2)
    images[0, 0] = torch.tensor([[1.0, -4.0], [2.0, 0.0]])
    mean = torch.tensor([100.0, 110.0, 120.0]).view(1, 3, 1, 1)
    shown = meaning.stretched(images, mean) + mean
    assert shown[0, 0].flatten().tolist() == pytest.approx([159.375, 0, 191.25, 127.5])
    assert shown[1].flatten().tolist() == pytest.approx([127.5] * 12)


def test_the_table_of_a_run(
    cnnvis: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The bundled network's classes, judged by itself, also by name or with an offset."""
    cnnvis("optimize --model demo --device cpu --workers 0 --layer fc8 -u 3,7 --run r --runs 2 "
           "--style 3 --step 8000 --iterations 24")  # fmt: skip
    tables = []
    for more in ([], ["--by-model", "demo"], ["--by-model", "demo", "--offset", "0"]):
        monkeypatch.setattr(sys, "argv", ["meaning", "r", *more])
        meaning.main()
        tables.append(capfd.readouterr().out)
    assert tables[0] == tables[1] == tables[2]
    rows = [line.split() for line in tables[0].splitlines() if "%" in line]
    assert [row[:2] for row in rows] == [["3", "true"], ["3", "stretched"]]
    shares = [[float(share.rstrip("%")) for share in row[2:]] for row in rows]
    assert all(0 <= first <= fifth <= 100 for first, fifth, *_ in shares)
    assert shares[0][0] == 100  # their own network names what it was asked to prefer
    assert re.search(r"moved and wrong: ", tables[0])
    monkeypatch.setattr(sys, "argv", ["meaning", "r", "--by-model", "demo", "--offset", "1"])
    with pytest.raises(UsageError, match="--offset 1"):
        meaning.main()
