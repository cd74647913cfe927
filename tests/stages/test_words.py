"""`cnnvis name --clip`: soft-WPMI by the published code's steps, and the way with a small CLIP."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cnnvis_cli.measures.wpmi import (
    evidence_spread,
    log_evidence,
    log_prior,
    memberships,
    normalisers,
    random_orders,
    soft_wpmi,
    strongest_first,
    word_probabilities,
)

Call = Callable[..., Any]
CONFIGURATION: dict[str, dict[str, Any]] = {
    "model_cfg": {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 64,
            "heads": 1,
            "layers": 1,
        },
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
}


def unit_vectors(rng: np.random.Generator, count: int) -> np.ndarray:
    found = rng.standard_normal((count, 6)).astype(np.float32)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


def wpmi_by_hand(similarity: np.ndarray, values: np.ndarray, count: int) -> list[list[float]]:
    """Return soft-WPMI of units and words, image by image, as the authors' code has its steps."""
    rows = []
    for image in similarity.tolist():
        size = sum(math.exp(10 * each) for each in image)
        rows.append([math.exp(10 * each) / size for each in image])
    evidence = []
    for unit in range(values.shape[1]):
        order = sorted(range(len(values)), key=lambda row: -values[row, unit])[:count]
        sums = [0.0] * similarity.shape[1]
        for rank, row in enumerate(order):
            sure = 0.998 - rank / count * (0.998 - 0.97)
            for word, each in enumerate(rows[row]):
                sums[word] += math.log(1 + sure * (each - 1) + 1e-7)
        evidence.append(sums)
    prior = []
    for word in range(similarity.shape[1]):
        top = max(sums[word] for sums in evidence)
        mean = sum(math.exp(sums[word] - top) for sums in evidence) / len(evidence)
        prior.append(top + math.log(mean))
    return [[a - b for a, b in zip(sums, prior, strict=True)] for sums in evidence]


@pytest.mark.parametrize("count", [2, 30, 250])
def test_soft_wpmi_is_that_of_the_published_steps(count: int) -> None:
    rng = np.random.default_rng(count)
    images, words = unit_vectors(rng, 260), unit_vectors(rng, 11)
    values = rng.standard_normal((260, 4)).astype(np.float32)
    normaliser = normalisers(images, words, block=4)
    order = strongest_first(values, count)
    parts = []
    for first in range(0, 11, 5):  # in parts, as long lists of words are
        some = word_probabilities(images, words[first : first + 5], normaliser)
        evidence = log_evidence(some, order)
        parts.append(soft_wpmi(evidence, log_prior(evidence)))
    wanted = wpmi_by_hand(images.astype(float) @ words.astype(float).T, values, count)
    assert np.concatenate(parts, axis=1) == pytest.approx(np.array(wanted), rel=1e-5, abs=1e-5)


def test_memberships_and_orders() -> None:
    assert memberships(100)[[0, 50, 99]] == pytest.approx([0.998, 0.984, 0.97028])
    values = np.array([[1, np.nan], [3, 2], [3, -1], [np.inf, 0]], np.float32)
    assert strongest_first(values, 3).tolist() == [[3, 1, 2], [1, 3, 2]]
    orders = random_orders(20, 5, 400, 0)
    assert all(len(set(order)) == 5 for order in orders.tolist())
    assert np.bincount(orders.ravel(), minlength=20) == pytest.approx(100, abs=45)


def test_the_spread_is_that_of_resampled_images() -> None:
    rng = np.random.default_rng(3)
    fits = rng.random((1, 60))
    terms = np.log(1 + memberships(60) * (fits[0] - 1) + 1e-7)
    sums = [terms[rng.integers(0, 60, 60)].sum() for _ in range(4000)]
    assert evidence_spread(fits)[0] == pytest.approx(np.std(sums), rel=0.05)


@pytest.fixture
def clip(plans: None) -> Path:
    """A small CLIP with random weights, in a folder with its configuration; and words."""
    library = pytest.importorskip("open_clip", reason="open_clip is not installed")
    folder = Path("small")
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIGURATION))
    torch.manual_seed(0)
    model = library.create_model(f"local-dir:{folder}", load_weights=False)
    torch.save(model.state_dict(), folder / "weights.pt")
    Path("words.txt").write_text("dog\n\n wheel \nred\ndog\nstripes\nzebra crossing\n")
    return folder


def test_a_word_for_each_unit(clip: Path, cnnvis: Call) -> None:
    from cnnvis_cli.network.clip import load_clip
    from cnnvis_cli.store.sample_file import SampleFile

    flags = f"--clip {clip} --clip-weights {clip}/weights.pt --words words.txt --strongest 5"
    cnnvis("topk images -c exact.toml --run r --sample 20")
    told = cnnvis(f"name --run r --trust-code {flags} --level 0.9 --layer fc3 --json")
    assert "random" not in told.err
    shown = json.loads(told.out)
    assert [each["unit"] for each in shown] == [f"fc3/{unit:04d}" for unit in range(10)]
    said: list[str] = []
    model = load_clip(str(clip), clip / "weights.pt", torch.device("cpu"), said.append)
    words = ["dog", "wheel", "red", "stripes", "zebra crossing"]
    assert model.of_words(words).shape == (5, 8)
    file = SampleFile(Path("r/sample.h5"))
    assert all(each["images"] == 5 and each["clip"] == model.words for each in shown)
    for each in shown:
        assert each["best"] in words
        assert each["name"] == (each["best"] if each["chance"] <= 0.9 else "unnamed")
    features = _features_of(model, file)
    similarity = features @ model.of_words(words).astype(float).T
    wanted = np.array(wpmi_by_hand(similarity, file.values("fc3"), 5))
    assert [each["best"] for each in shown] == [words[n] for n in wanted.argmax(axis=1)]
    assert [each["score"] for each in shown] == pytest.approx(wanted.max(axis=1), abs=1e-3)
    assert len(Path("r/names.tsv").read_text().splitlines()) == 1 + 6 + 8 + 10
    told = cnnvis("name --run r --trust-code --level 0.9")
    assert f"r/names.tsv: names by {model.words} are replaced" in told.err
    told = cnnvis(f"name --run r --trust-code {flags} --named cross --level 0.99 --json")
    assert {each["name"] for each in json.loads(told.out)} <= {"zebra crossing"}
    assert "r/names.tsv: names of classes are replaced" in told.err


def _features_of(model: Any, file: Any) -> np.ndarray:
    """Return the features of the sample's images by open_clip's own transform."""
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image

    made = PreprocessCfg(size=32, **CONFIGURATION["preprocess_cfg"])
    transform = image_transform_v2(made, is_train=False)
    found = []
    for row in range(20):
        with Image.open(Path("images", file.images().name(row))) as image, torch.no_grad():
            features = model.module.encode_image(transform(image)[None])[0].numpy()
        found.append(features / np.linalg.norm(features))
    return np.stack(found).astype(float)


def test_what_it_lacks_is_named(clip: Path, cnnvis: Call) -> None:
    cnnvis("topk images -c exact.toml --run r --sample 20")
    name = f"name --run r --trust-code --clip {clip}"
    weights, words = f"--clip-weights {clip}/weights.pt", "--words words.txt"
    for flags, said in {
        "": "give --words FILE as well",
        words: "give --clip-weights FILE as well",
        f"{weights} --words none.txt": "--words none.txt: cannot be read",
        f"--clip-weights none.pt {words} --strongest 5": "--clip-weights none.pt: is no file",
        f"--clip-weights run.toml {words} --strongest 5": "--clip-weights run.toml: is no file",
        f"{weights} {words}": "20 images can be used, and --strongest 100 needs twice as many",
        f"{weights} {words} --named owl": "--named owl: is in none of --words words.txt",
        f"--clip-weights words.txt {words} --strongest 5": "words.txt: cannot be loaded into small",
    }.items():
        assert said in cnnvis(f"{name} {flags}", 2).err
    told = cnnvis(f"{name.replace('small', 'ViT-B-3')} {weights} {words} --strongest 5", 2)
    assert "open_clip has no CLIP model 'ViT-B-3'; did you mean 'ViT-B-32'?" in told.err
    told = cnnvis(f"{name.replace('small', 'ViT-B-16-SigLIP')} {weights} {words} --strongest 5", 2)
    assert "a tokenizer from a hub, which cnnvis does not ask" in told.err


def test_without_open_clip_the_extra_is_named(
    plans: None, cnnvis: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    cnnvis("topk images -c exact.toml --run r --sample 20")
    Path("words.txt").write_text("a\nb\n")
    flags = "--clip ViT-B-32 --clip-weights words.txt --words words.txt --strongest 5"
    assert "pip install 'cnnvis[clip]'" in cnnvis(f"name --run r --trust-code {flags}", 2).err
