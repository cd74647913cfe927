"""Names of units: areas by comparing pairs, chance by shuffling, and known answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cnnvis_cli.measures.likeness import (
    alignment,
    alignment_error,
    centred,
    correlation_errors,
    correlations,
    dependence,
)
from cnnvis_cli.measures.separation import (
    Groups,
    areas,
    best_by_chance,
    chances,
    standard_errors,
)
from cnnvis_cli.network.zoo import imagenet_names
from cnnvis_cli.nouns import Unit
from cnnvis_cli.report import Report
from cnnvis_cli.stages.numbers.counterparts import SideBySide
from cnnvis_cli.store.run import Run
from cnnvis_cli.store.sample_file import SampleFile

Call = Callable[..., Any]


def area_by_pairs(inside: np.ndarray, outside: np.ndarray) -> float:
    """Return the share of pairs in the right order, ties counted half, one by one."""
    pairs = [(a, b) for a in inside.tolist() for b in outside.tolist()]
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


def some_groups(rng: np.random.Generator, images: int, count: int) -> Groups:
    members = rng.random((count, images)) < 0.4
    members[:, 0], members[:, 1] = True, False
    return Groups(tuple(f"g{i}" for i in range(count)), members)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 30), st.integers(1, 4), st.integers(0, 2**31))
def test_areas_are_those_of_all_pairs(images: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = some_groups(rng, images, count)
    values = rng.integers(-3, 4, (images, 3)).astype(np.float32)  # ties are the rule
    values[rng.random(values.shape) < 0.1] = np.nan
    found = areas(values, groups)
    known = np.where(np.isnan(values), -1e9, values)
    for group, inside in enumerate(groups.members):
        for unit in range(3):
            wanted = area_by_pairs(known[inside, unit], known[~inside, unit])
            assert found[group, unit] == pytest.approx(wanted, abs=1e-12)


def test_the_standard_error_is_that_of_the_jackknife() -> None:
    """DeLong's estimate is close to leaving out one image after the other."""
    rng = np.random.default_rng(1)
    inside = np.arange(120) < 40
    values = (rng.standard_normal(120) + 0.8 * inside).astype(np.float32)[:, None]
    groups = Groups(("g",), inside[None])
    (found,) = standard_errors(values, groups, [0])
    variance = 0.0
    for side in (True, False):
        rows = np.flatnonzero(inside == side)
        kept = [np.delete(np.arange(120), row) for row in rows]
        each = [area_by_pairs(values[k][inside[k], 0], values[k][~inside[k], 0]) for k in kept]
        variance += (len(rows) - 1) * float(np.var(each))
    assert found == pytest.approx(variance**0.5, rel=1e-6)
    assert np.isnan(standard_errors(values, Groups(("one",), np.eye(1, 120) > 0), [0])).all()


def test_units_of_noise_are_as_good_as_chance_says() -> None:
    rng = np.random.default_rng(2)
    groups = some_groups(rng, 80, 12)
    values = rng.standard_normal((80, 2000)).astype(np.float32)
    found = chances(areas(values, groups).max(axis=0), best_by_chance(groups, 499, 0))
    for level in (0.01, 0.05, 0.25, 0.5):
        assert (found <= level).mean() == pytest.approx(level, abs=0.05)
    assert found.min() >= 1 / 500


@pytest.fixture
def run(plans: None, cnnvis: Call) -> Path:
    """The network of whole numbers over 20 photographs, all in the sample."""
    for number in range(20):  # below a folder that tells nothing, two that hold classes
        old = Path("images") / f"class{number % 2}" / f"{number:03d}.png"
        new = Path("nested") / ("even", "odd")[number % 2] / f"c{number % 4}" / old.name
        new.parent.mkdir(parents=True, exist_ok=True)
        old.rename(new)
    cnnvis("topk nested -c exact.toml --run r --sample 20 --class-level 2")
    return Path("r")


def test_a_table_of_all_units(run: Path, cnnvis: Call) -> None:
    told = cnnvis("name --run r --trust-code --level 0.9 --layer fc3 --units 0-3 --json")
    shown = json.loads(told.out)
    assert [each["unit"] for each in shown] == [f"fc3/{unit:04d}" for unit in range(4)]
    head, *lines = (run / "names.tsv").read_text().splitlines()
    assert head.split("\t") == list(shown[0])
    assert len(lines) == 6 + 8 + 10
    values = SampleFile(run / "sample.h5").values("fc3")
    paths = [SampleFile(run / "sample.h5").images().name(row) for row in range(20)]
    names = {**{f"c{i}": f"/c{i}/" for i in range(4)}, "even": "even/", "odd": "odd/"}
    for unit, line in enumerate(lines[14:]):
        areas_by_name = {}
        for name, part in names.items():
            inside = np.array([part in path for path in paths])
            areas_by_name[name] = area_by_pairs(values[inside, unit], values[~inside, unit])
        _, name, area, _, chance, images, best = line.split("\t")
        assert float(area) == pytest.approx(max(areas_by_name.values()), rel=1e-3)
        assert areas_by_name[best] == max(areas_by_name.values())
        assert int(images) == (10 if best in ("even", "odd") else 5)
        assert name == (best if float(chance) <= 0.9 else "unnamed")
    before = (run / "names.tsv").stat().st_mtime_ns
    cnnvis("name --run r --trust-code --level 0.9 --named even")
    assert (run / "names.tsv").stat().st_mtime_ns == before


def test_classes_of_imagenet_have_words_for_several(plans: None, cnnvis: Call) -> None:
    """Terrier and spaniel, tabby, airliner: five images of each."""
    ids = ("n02094258", "n02102318", "n02123045", "n02690373")
    for number in range(20):
        old = Path("images") / f"class{number % 2}" / f"{number:03d}.png"
        new = Path("photographs") / ids[number % 4] / old.name
        new.parent.mkdir(parents=True, exist_ok=True)
        old.rename(new)
    cnnvis("topk photographs -c exact.toml --run r --sample 20")
    cnnvis("name --run r --trust-code --level 0.99 --least 5")
    rows = [line.split("\t") for line in Path("r/names.tsv").read_text().splitlines()[1:]]
    file = SampleFile(Path("r/sample.h5"))
    dogs = np.array(
        [ids[0] in path or ids[1] in path for path in map(file.images().name, range(20))]
    )
    words = {row[6] for row in rows}
    assert "hunting dog" in words
    assert words <= {"hunting dog", "carnivore", *map(imagenet_names().get, ids)}
    for row in (row for row in rows if row[6] == "hunting dog"):
        layer, unit = row[0].split("/")
        values = file.values(layer)[:, int(unit)]
        assert float(row[2]) == pytest.approx(area_by_pairs(values[dogs], values[~dogs]), rel=1e-3)
    told = cnnvis("name --run r --trust-code --level 0.99 --least 5 --named dog --json")
    kinds = {each["name"] for each in json.loads(told.out)}
    assert "hunting dog" in kinds
    assert kinds <= {"hunting dog", *map(imagenet_names().get, ids[:2])}


def test_classes_of_one_name_are_told_apart(run: Path, cnnvis: Call) -> None:
    Path("names.txt").write_text("crane\ncrane\nowl\ntoad\n")
    cnnvis("name --run r --trust-code --classes names.txt")
    best = {line.split("\t")[6] for line in (run / "names.tsv").read_text().splitlines()[1:]}
    assert "crane" not in best
    assert best & {"crane (c0)", "crane (c1)"}


def test_what_cannot_be_named_is_refused(plans: None, cnnvis: Call) -> None:
    cnnvis("topk images -c exact.toml --run r --layer conv2")
    told = cnnvis("name --run r --trust-code --least 1", 2)  # one image has no standard error
    assert "--least 1: must be at least 2" in told.err
    told = cnnvis("name --run r --trust-code --shuffles 19 --least 2", 2)
    assert "--level 0.01: with --shuffles 19 no name can be so rare; give --shuffles 99" in told.err
    told = cnnvis("name --run r --trust-code --least 2 --layer fc3", 2)
    assert "r/sample.h5: holds no fc3; it needs a topk --sample of its own" in told.err
    told = cnnvis("name --run r --trust-code --least 2 --named zebra", 2)
    assert "--named zebra: is in the name of no class" in told.err
    told = cnnvis("name --run r --trust-code --least 9", 2)
    assert "r/sample.h5: no class has --least 9 images in it" in told.err
    Path("flat").mkdir()
    for path in Path("images").rglob("*.png"):
        path.rename(Path("flat", path.name))
    cnnvis("topk flat -c exact.toml --run f")
    told = cnnvis("name --run f --trust-code", 2)
    assert "f/sample.h5: none of its images has a class, so there is no name to give" in told.err
    Path("r/sample.h5").unlink()
    assert "r has no sample.h5 yet" in cnnvis("name --run r --trust-code", 2).err


@pytest.mark.long
def test_the_demo_network_s_classes_are_the_names_of_its_last_layer(cnnvis: Call) -> None:
    cnnvis("topk demo --model demo --run r --layer fc8 --sample 600")
    cnnvis("name --run r")
    rows = [line.split("\t") for line in Path("r/names.tsv").read_text().splitlines()[1:]]
    classes = json.loads(Path("r/run.json").read_text())["network"]["classes"]
    right = [row[1] == name for row, name in zip(rows, classes, strict=True)]
    assert np.mean(right) >= 0.95


def kernel_alignment(x: np.ndarray, y: np.ndarray) -> float:
    """Return unbiased CKA by forming both kernels, as Song et al. 2012 write it."""

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        n, one = len(k), np.ones(len(k))
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        first = np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return float((first - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3)))

    k, m = x @ x.T, y @ y.T
    return float(hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)))


def aligned(x: np.ndarray, y: np.ndarray) -> float:
    one, two = (centred(each.astype(np.float32)) for each in (x, y))
    return alignment(one, two, dependence(one, one) * dependence(two, two))


def test_alignment_is_that_of_the_kernels() -> None:
    rng = np.random.default_rng(4)
    x = rng.standard_normal((30, 7)) * 3 + 5
    y = x @ rng.standard_normal((7, 9)) + rng.standard_normal((30, 9))
    assert aligned(x, y) == pytest.approx(kernel_alignment(x, y), abs=1e-5)  # centred or not
    turned = np.linalg.qr(rng.standard_normal((7, 7)))[0]
    assert aligned(x, x @ turned * 9) == pytest.approx(1, abs=1e-5)
    apart = [aligned(*rng.standard_normal((2, 40, 60))) for _ in range(40)]
    assert abs(float(np.mean(apart))) < 0.03  # where plain CKA would be about 0.6
    assert np.isnan(aligned(np.ones((9, 3)), x[:9]))


def test_correlations_are_pearson_s() -> None:
    rng = np.random.default_rng(5)
    x, y = (rng.standard_normal((25, n)).astype(np.float32) * 1e3 + 9 for n in (4, 6))
    x[:, 2] = 7
    found = correlations(centred(x), centred(y))
    for p in (0, 1, 3):
        for q in range(6):
            assert found[p, q] == pytest.approx(np.corrcoef(x[:, p], y[:, q])[0, 1], abs=1e-5)
    assert not found[2].any()


def test_errors_of_the_jackknife_are_those_of_repeated_samples() -> None:
    """The spread of numbers over many samples of the same kind is what one sample tells."""
    rng = np.random.default_rng(6)
    found, told = [], []
    for _ in range(60):
        x = rng.standard_normal((200, 3)).astype(np.float32)
        y = (x[:, [0, 1]] + rng.standard_normal((200, 2))).astype(np.float32)
        one, two, order = centred(x), centred(y), rng.permutation(200)
        own = dependence(one, one) * dependence(two, two)
        found.append([alignment(one, two, own), *np.diag(correlations(one, two))])
        told.append([alignment_error(one, two, order), *correlation_errors(one[:, :2], two, order)])
    assert np.mean(told, axis=0) == pytest.approx(np.std(found, axis=0), rel=0.3)
    assert np.std(found, axis=0)[1] == pytest.approx(0.5 / 200**0.5, rel=0.3)  # (1 - r^2) / sqrt n


PERMUTED = """
import torch
from tinynet import exact


def permuted():
    network = exact()
    with torch.no_grad():
        order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
        network[3].weight.copy_(network[3].weight[order])
        network[3].bias.copy_(network[3].bias[order])
        last = network[6].weight.view(10, 8, 49)[:, order].reshape(10, -1)
        turn = torch.arange(9, -1, -1)
        network[6].weight.copy_(last[turn])
        network[6].bias.copy_(network[6].bias[turn])
    return network
"""


def test_a_permuted_copy_matches_completely(plans: None, cnnvis: Call) -> None:
    Path("permuted.py").write_text(PERMUTED)
    cnnvis("topk images -c exact.toml --run a --sample 20")
    cnnvis("topk images -c exact.toml --model permuted:permuted --run b --sample 20")
    layers = json.loads(cnnvis("compare a b --json").out.rpartition("]")[0] + "]")
    assert [each["layer"] for each in layers] == ["conv1", "conv2", "fc3"]
    assert all(each["cka"] == pytest.approx(1, abs=1e-4) for each in layers)
    assert [each["survive"] for each in layers[1:]] == [1, 1]
    (table,) = Path("a/figures/compare").glob("b-*-units.tsv")
    rows = [line.split("\t") for line in table.read_text().splitlines()[1:]]
    fc3 = [row for row in rows if row[0].startswith("fc3")]
    assert [row[1] for row in fc3] == [f"fc3/{9 - unit:04d}" for unit in range(10)]
    assert all(row[1] == row[5] and float(row[2]) > 0.999 > float(row[3]) for row in fc3)
    assert len([row for row in rows if row[0].startswith("conv2")]) == 8
    assert table.with_name(table.name.replace("-units.tsv", ".png")).is_file()
    matches = table.with_name(table.name.replace("-units.tsv", "-matches.png"))
    with Image.open(matches) as image:
        assert image.width > 600
    sides = SideBySide.of(Run(Path("a")), Run(Path("b")), Report(quiet=True))
    for unit in range(10):
        here = sides.one.strongest(Unit("fc3", unit), 48)
        assert np.array_equal(here, sides.two.strongest(Unit("fc3", 9 - unit), 48))
    cnnvis("verify a --trust-code --dataset images")
    page = table.with_name(table.name.removesuffix("-units.tsv")) / "index.html"
    shown = page.read_text()
    best = max(rows, key=lambda row: float(row[2]))
    assert f"<bdi>{best[0]}</bdi>" in shown
    assert "<title>tinynet:exact beside permuted:permuted</title>" in shown
    assert shown.count("<title>") == 1 + 3 * 3  # the page's own, and one of each pair of layers
    for sheet in re.findall('data-sheet="(.*?)"', shown):
        assert (page.parent / sheet).is_file()
    cnnvis("gallery --run a --trust-code --dataset images")
    link = f"../figures/compare/{page.parent.name}/index.html"
    assert f'href="{link}"' in Path("a/gallery/index.html").read_text()
    assert cnnvis("verify a --trust-code --dataset images").out
    cnnvis("compare a b")
    assert 'href="../../../gallery/index.html#conv2/' in page.read_text()
    matches.unlink()
    Path("images").rename("elsewhere")
    told = cnnvis("compare a b")
    assert "pictures of units are left out: " in told.err
    assert not matches.exists()
    assert "The images could not be read" in page.read_text()
    assert "data-sheet" not in page.read_text()


def test_samples_without_common_images_are_not_compared(plans: None, cnnvis: Call) -> None:
    cnnvis("topk images -c exact.toml --run a")
    Path("others").mkdir()
    for path in Path("images").rglob("*.png"):
        path.rename(Path("others", path.name))
    cnnvis("topk others -c exact.toml --run b")
    assert "have 0 images in common" in cnnvis("compare a b", 2).err
    assert "nowhere has no sample.h5 yet" in cnnvis("compare a nowhere", 2).err
    Path("b/run.json").unlink()
    assert "b/run.json: is gone" in cnnvis("compare a b", 2).err
