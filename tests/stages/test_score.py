"""`cnnvis score`: the paper's task written anew, its control, and known answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnvis_cli.stages.numbers.interpretability import (
    bootstrap_spread,
    certainties,
    least_images,
    likeness_gaps,
    unit_length,
    unit_tasks,
)
from cnnvis_cli.store.sample_file import SampleFile

Call = Callable[..., Any]


def cosine(a: list[float], b: list[float]) -> float:
    product = sum(x * y for x, y in zip(a, b, strict=True))
    return product / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def score_by_hand(values: np.ndarray, features: np.ndarray, both: bool) -> float:
    """Return the score of one unit in plain Python, task by task."""
    means = [sum(column) / len(features) for column in zip(*features.tolist(), strict=True)]
    shown = [[x - m for x, m in zip(row, means, strict=True)] for row in features.tolist()]
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    tail = round(len(values) / 10)
    weak, strong = order[:tail], order[::-1][:tail]
    places = np.linspace(9, tail - 1, min(20, tail - 9)).round().astype(int).tolist()
    found = []
    for place in places:

        def alike(query: int, explanation: list[int]) -> float:
            return sum(cosine(shown[query], shown[each]) for each in explanation) / 9

        delta = alike(strong[place], strong[:9]) - alike(weak[place], strong[:9])
        if both:
            delta -= alike(strong[place], weak[:9]) - alike(weak[place], weak[:9])
        found.append(1 / (1 + math.exp(-delta / 0.16)))
    return sum(found) / len(found)


def score(values: np.ndarray, features: np.ndarray, both: bool = True) -> float:
    shown = unit_length(features, features.mean(axis=0, dtype=np.float64).astype(np.float32))
    tasks = unit_tasks(values)
    below = shown[tasks.weakest] if both else None
    apart = likeness_gaps(tasks, shown, shown[tasks.strongest], below)
    return float(certainties(apart, 0.16).mean())


@pytest.mark.parametrize("images", [140, 203, 400])
def test_the_score_is_that_of_the_definition(images: int) -> None:
    rng = np.random.default_rng(images)
    features = rng.random((images, 12)).astype(np.float32)
    values = (features[:, 3] + 0.2 * rng.standard_normal(images)).astype(np.float32)
    for both in (True, False):
        assert score(values, features, both) == pytest.approx(
            score_by_hand(values, features, both), abs=1e-6
        )


def test_what_the_features_show_scores_high_and_noise_does_not() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((400, 30)).astype(np.float32)
    features[:, 0] *= 4
    assert score(features[:, 0], features) > 0.95
    noise = [score(rng.standard_normal(400).astype(np.float32), features) for _ in range(100)]
    assert np.mean(noise) == pytest.approx(0.5, abs=0.03)


def test_the_spread_is_that_of_a_mean() -> None:
    solved = np.random.default_rng(1).random(20)
    wanted = solved.std() / math.sqrt(20)
    found = [bootstrap_spread(solved, np.random.default_rng(seed)) for seed in range(20)]
    assert np.mean(found) == pytest.approx(wanted, rel=0.1)
    assert certainties(np.array([-1e9, 0, 1e9]), 0.16) == pytest.approx([0, 0.5, 1])


def test_a_run_is_scored_by_all_that_it_has(
    photographs: Callable[..., Path], plans: None, cnnvis: Call
) -> None:
    photographs(Path("many"), least_images(), classes=2)
    images = Path("many").absolute()
    text = Path("exact.toml").read_text().replace(str(Path("images").absolute()), str(images))
    Path("exact.toml").write_text(text.replace("sample = 9", "sample = 1000"))
    cnnvis("topk many -c exact.toml --run r")
    for more in ("", "--minimise"):
        cnnvis(f"optimize -c exact.toml --run r --layer fc3 --units 0,1 --style 3 --runs 2 {more}")
    told = cnnvis(
        "score -c exact.toml --run r --layer conv2 --layer fc3 --encoder-layer fc3 --json"
    )
    means = {(each["layer"], each["explanation"]): each for each in json.loads(told.out)}
    assert {name for layer, name in means if layer == "conv2"} == {"images", "images+"}
    assert {name for layer, name in means if layer == "fc3"} == {"images", "images+", "3", "3+"}
    assert means["fc3", "3"]["units"] == 2
    assert "similarity by tinynet:exact fc3, the network itself" in told.err
    head, *lines = Path("r/scores.tsv").read_text().splitlines()
    rows = [dict(zip(head.split("\t"), line.split("\t"), strict=True)) for line in lines]
    file = SampleFile(Path("r/sample.h5"))
    features = np.maximum(file.values("fc3"), 0)
    for row in rows:
        if row["unit"].startswith("fc3") and row["explanation"].startswith("images"):
            unit, both = int(row["unit"][-4:]), row["explanation"] == "images"
            wanted = score_by_hand(file.values("fc3")[:, unit], features, both)
            assert float(row["score"]) == pytest.approx(wanted, rel=2e-3)  # four digits
    before = Path("r/scores.tsv").read_text()
    again = "score -c exact.toml --run r --layer fc3 --units 1 --encoder-layer fc3"
    cnnvis(again)  # some of the same: the others stay
    assert Path("r/scores.tsv").read_text() == before
    told = cnnvis(f"{again} --alpha 0.3")
    assert "scores of another encoder, alpha or sample are replaced" in told.err
    assert len(Path("r/scores.tsv").read_text().splitlines()) == 1 + 4
    controls = [float(row["control"]) for row in rows if row["explanation"] == "images"]
    assert np.mean(controls) == pytest.approx(0.5, abs=0.1)


def test_a_small_sample_is_refused(plans: None, cnnvis: Call) -> None:
    cnnvis("topk images -c exact.toml --run r")
    told = cnnvis("score --run r --trust-code", 2)
    assert "9 images can be used, and tasks need 140; make a larger --sample" in told.err
