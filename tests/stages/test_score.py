"""`cnnvis score`: the paper's task written anew, its control, and known answers."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import spearmanr

from cnnvis_cli.measures.interpretability import (
    bootstrap_spread,
    certainties,
    least_images,
    likeness_gaps,
    unit_length,
    unit_tasks,
)
from cnnvis_cli.measures.likeness import between, rank_vectors, within
from cnnvis_cli.store.sample_file import SampleFile

Call = Callable[..., Any]


def cosine(a: list[float], b: list[float]) -> float:
    product = sum(x * y for x, y in zip(a, b, strict=True))
    return product / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def score_by_hand(
    values: np.ndarray, features: np.ndarray, both: bool, centre: bool = True
) -> float:
    """Return the score of one unit in plain Python, task by task."""
    means = [
        centre * sum(column) / len(features) for column in zip(*features.tolist(), strict=True)
    ]
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


DREAMSIM = """
import socket
from pathlib import Path

import torch


class Model:
    def embed(self, images):  # as the package's: one row per image, of length 1, in 0 to 1
        assert images.shape[1:] == (3, 224, 224) and 0 <= images.min() <= images.max() <= 1
        parts = torch.cat([images.mean((2, 3)), images.std((2, 3))], dim=1)
        return (parts.T / parts.norm(dim=1)).T


def dreamsim(pretrained=True, device="cuda", cache_dir="./models", dreamsim_type="ensemble"):
    assert pretrained and dreamsim_type == "clip_vitb32"
    if Path(cache_dir, "clip_vitb32_pretrain.pth.tar").read_text() == "fetch":
        socket.create_connection(("127.0.0.1", 9))
    return Model(), None
"""


def test_dreamsim_is_asked_as_its_package_wants(
    photographs: Callable[..., Path],
    plans: None,
    cnnvis: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The package is a stand-in: its weights are not at hand here."""
    photographs(Path("many"), least_images(), classes=2)
    text = Path("exact.toml").read_text().replace("sample = 9", "sample = 1000")
    Path("exact.toml").write_text(
        text.replace(str(Path("images").absolute()), str(Path("many").absolute()))
    )
    cnnvis("topk many -c exact.toml --run r")
    asked = "score -c exact.toml --run r --layer fc3 --encoder dreamsim --encoder-weights known"
    monkeypatch.setitem(sys.modules, "dreamsim", None)
    assert "the package is not there" in cnnvis(asked, 2).err
    monkeypatch.delitem(sys.modules, "dreamsim")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "dreamsim.py").write_text(DREAMSIM)
    monkeypatch.syspath_prepend(tmp_path / "package")
    told = cnnvis(asked, 2).err
    assert "known has no weights of it (of the ensemble there is no dino_vitb16_pretrain" in told
    Path("known", "clip_vitb32_single_lora").mkdir(parents=True)
    weights = Path("known", "clip_vitb32_pretrain.pth.tar")
    weights.write_text("fetch")
    told = cnnvis(asked, 2).err
    assert "known cannot be loaded as clip_vitb32 (it would ask the network" in told
    weights.write_text("known")
    assert "similarity by DreamSim clip_vitb32" in cnnvis(asked).err
    file, rows = SampleFile(Path("r/sample.h5")), []
    for row in range(least_images()):
        with Image.open(Path("many", file.images().name(row))) as image:
            whole = image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
        pixels = np.asarray(whole).reshape(-1, 3) / 255
        rows.append([*pixels.mean(axis=0), *pixels.std(axis=0, ddof=1)])
    head, *lines = Path("r/scores.tsv").read_text().splitlines()
    for line in lines:
        found = dict(zip(head.split("\t"), line.split("\t"), strict=True))
        values, both = (
            file.values("fc3")[:, int(found["unit"][-4:])],
            found["explanation"] == "images",
        )
        wanted = score_by_hand(values, np.array(rows), both, centre=False)
        assert float(found["score"]) == pytest.approx(wanted, rel=2e-3)


def test_a_small_sample_is_refused(plans: None, cnnvis: Call) -> None:
    cnnvis("topk images -c exact.toml --run r")
    told = cnnvis("score --run r --trust-code", 2)
    assert "9 images can be used, and tasks need 140; make a larger --sample" in told.err


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 5), st.integers(2, 9), st.integers(0, 2**31))
def test_rank_correlations_are_spearman_s(count: int, places: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 4, (count + 2, places)).astype(np.float32)  # ties are the rule
    vectors = rank_vectors(values)

    def rho(one: int, two: int) -> float:
        if np.ptp(values[one]) == 0 or np.ptp(values[two]) == 0:
            return 0.0
        return float(spearmanr(values[one], values[two]).statistic)

    pairs = [rho(a, b) for a in range(count) for b in range(count) if a != b]
    assert within(vectors[:count]) == pytest.approx(np.mean(pairs), abs=1e-5)
    cross = [rho(a, b) for a in range(count) for b in (count, count + 1)]
    assert between(vectors[:count], vectors[count:]) == pytest.approx(np.mean(cross), abs=1e-5)


def test_the_way_of_optimized_images_is_compared_layer_by_layer(plans: None, cnnvis: Call) -> None:
    cnnvis("topk images -c exact.toml --run r --sample 20")
    cnnvis("optimize -c exact.toml --run r --layer fc3 --units 0-3 --style 3 --runs 2")
    told = cnnvis("score --run r --trust-code --layer fc3 --natural-path --json")
    rows = json.loads(told.out)
    assert [(row["layer"], row["of"], row["style"]) for row in rows] == [
        (layer, "fc3", "3") for layer in ("conv1", "conv2", "fc3")
    ]
    assert Path("r/figures/paths/fc3.png").is_file()
    values = SampleFile(Path("r/sample.h5")).values("fc3")
    index = SampleFile(Path("r/sample.h5")).images().index.tolist()
    with h5py.File("r/topk.h5") as file:
        image, activation = (file[f"layers/fc3/{name}"][:4, :9] for name in ("image", "activation"))
    shown = [
        [values[index.index(i)] for i, a in zip(*pair, strict=True) if i >= 0 and a > 0]
        for pair in zip(image.tolist(), activation.tolist(), strict=True)
    ]
    shown = [each for each in shown if len(each) > 1]
    last = rows[-1]
    assert last["units"] == len(shown) > 1
    same = [
        np.mean([spearmanr(a, b).statistic for i, a in enumerate(own) for b in own[i + 1 :]])
        for own in shown
    ]
    assert last["same"] == pytest.approx(np.mean(same), abs=0.02)  # half floats tie
    others = []
    for unit, own in enumerate(shown):
        rest = [each for u, some in enumerate(shown) if u != unit for each in some]
        others.append(np.mean([spearmanr(a, b).statistic for a in own for b in rest]))
    assert last["others"] == pytest.approx(np.mean(others), abs=0.02)
    path = (last["optimized"] - last["others"]) / (last["same"] - last["others"])
    assert last["path"] == pytest.approx(path, rel=1e-6)


def test_the_way_needs_images_of_the_whole_input(plans: None, cnnvis: Call) -> None:
    cnnvis("topk images -c exact.toml --run r")
    cnnvis("optimize -c exact.toml --run r --layer conv1 --units 0,1 --style 3 --runs 1")
    told = cnnvis("score --run r --trust-code --natural-path", 2)
    assert "r: no layer has optimized images of the whole input" in told.err
    told = cnnvis("score --run r --trust-code --natural-path --layer conv1", 2)
    assert "images of conv1 show its field, not the whole input" in told.err


def test_weights_of_no_encoder_are_refused(plans: None, cnnvis: Call) -> None:
    """Before anything is computed, as are words without CLIP."""
    cnnvis("topk images -c exact.toml --run r --layer fc3")
    told = cnnvis("score -c exact.toml --run r --layer fc3 --encoder-weights nowhere", 2).err
    assert "--encoder-weights: whose? name the network with --encoder" in told
    told = cnnvis("name -c exact.toml --run r --words nowhere", 2).err
    assert "--words: chooses words by CLIP; name the model with --clip" in told
