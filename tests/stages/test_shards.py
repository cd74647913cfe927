"""Shards and `cnnvis merge`: any cut of the work, put together, is the run in one piece."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnvis_cli.stages.common.blocks import Blocks
from cnnvis_cli.stages.project import job as project_job
from cnnvis_cli.store.hdf5 import Header
from cnnvis_cli.store.optimized import Optimized, OptimizedFile
from cnnvis_cli.store.parts import Parts

Call = Callable[..., Any]
STAGES = ("topk images", "optimize", "project")


@pytest.fixture(autouse=True)
def small(plans: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plans, and projections in blocks of a few channels, so that there are some to share."""
    monkeypatch.setattr(project_job, "_BLOCK_BYTES", 1 << 15)


def whole(cnnvis: Call) -> Path:
    """Return a run in one piece."""
    for stage in STAGES:
        cnnvis(f"{stage} -c exact.toml --run whole")
    return Path("whole")


def no_parts(run: Path) -> bool:
    return not (run / "parts").exists()


# shards, in directories of their own or in one, and the number of the first
@pytest.mark.parametrize(("count", "apart", "first"), [(1, False, 1), (3, False, 1), (5, True, 0)])
def test_merged_shards_are_the_run_in_one_piece(
    count: int, apart: bool, first: int, cnnvis: Call, results: Call
) -> None:
    wanted = results(whole(cnnvis))
    runs = [f"part{i}" if apart else "merged" for i in range(first, first + count)]
    sources = " ".join(dict.fromkeys(runs))
    for stage in STAGES:
        for i, run in enumerate(runs, first):
            if apart and stage == "project":
                shutil.copy("merged/topk.h5", run)
            cnnvis(f"{stage} -c exact.toml --run {run} --shard {i}/{count}")
        if stage != "optimize":  # which needs nothing of topk: merged with the projections
            cnnvis(f"merge {sources} --trust-code --run merged")
    merged = results(Path("merged"))
    assert merged == wanted
    assert set(merged) >= {"topk.h5", "optimized/fc3.h5", "projected/conv2.h5"}
    assert no_parts(Path("merged"))
    cnnvis(f"merge {sources} --trust-code --run merged")  # once more: all is there
    assert results(Path("merged")) == wanted
    for stage in STAGES:  # and the command in one piece has nothing left to do
        cnnvis(f"{stage} -c exact.toml --run merged")
    assert results(Path("merged")) == wanted


def test_shards_share_the_work(cnnvis: Call) -> None:
    for i in (1, 2, 3):
        cnnvis(f"optimize -c exact.toml --run part{i} --shard {i}/3 --layer fc3")
    held = [set(Blocks(parts_of(Path(f"part{i}")), 2).units()) for i in (1, 2, 3)]
    assert set.union(*held) == set(range(10))
    assert sum(map(len, held)) == 10  # nobody does what another does
    assert all(2 <= len(units) <= 4 for units in held)


def parts_of(run: Path) -> Parts:
    (folder,) = (run / "parts/optimized").glob("fc3-3-[!s]*")
    return Parts(folder, folder.name.rsplit("-", 1)[-1])


def test_shards_may_overlap(cnnvis: Call, results: Call) -> None:
    cnnvis("optimize -c exact.toml --run whole --layer fc3")
    for run, shard in (("a", "1/2"), ("b", "2/3"), ("c", "2/2"), ("a", "3/3")):
        cnnvis(f"optimize -c exact.toml --run {run} --layer fc3 --shard {shard}")
    cnnvis("merge c a b a --trust-code --run merged")
    assert results(Path("merged")) == results(Path("whole"))


def test_without_a_shard_the_others_are_published_and_counted(cnnvis: Call, results: Call) -> None:
    cnnvis("optimize -c exact.toml --run whole --layer fc3")
    for i in (1, 3):
        cnnvis(f"optimize -c exact.toml --run part{i} --layer fc3 --shard {i}/3")
    told = cnnvis("merge part1 part3 --trust-code --run merged")
    units = OptimizedFile(Path("merged/optimized/fc3.h5")).units("3").tolist()
    assert 0 < len(units) < 10
    assert f"merged/optimized/fc3.h5: 3, {len(units)} units" in told.out
    cnnvis("optimize -c exact.toml --run merged --layer fc3")  # what is missing, in one piece
    assert results(Path("merged")) == results(Path("whole"))


def test_finished_files_are_joined_as_well(cnnvis: Call, results: Call) -> None:
    cnnvis("topk images -c exact.toml --run whole")
    for run in ("low", "high"):
        Path(run).mkdir()
        cnnvis(f"optimize -c exact.toml --run {run} --layer conv2 --units 0")
        shutil.copy("whole/topk.h5", run)
    for run, units in (("low", "0-3"), ("high", "4-7"), ("whole", "0-7")):
        for stage in ("optimize", "project"):
            cnnvis(f"{stage} -c exact.toml --run {run} --layer conv2 --units {units}")
    cnnvis("optimize -c exact.toml --run high --layer conv2 --units 2-3 --shard 1/1")
    cnnvis("merge high low --trust-code --run merged")
    wanted = results(Path("whole"))
    del wanted["topk.h5"], wanted["sample.h5"]  # none of the two has made them
    assert results(Path("merged")) == wanted


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("--seed 1", "3 of different plans: seed"),
        ("--iterations 5", "iterations"),
        ("--model tinynet:fragile", "of different plans: model is .*exact.* there, .*fragile"),
    ],
)
def test_shards_of_different_plans_are_refused(change: str, named: str, cnnvis: Call) -> None:
    for i, other in ((1, ""), (2, change)):
        cnnvis(f"optimize -c exact.toml --run part{i} --layer fc3 --shard {i}/2 {other}")
    told = cnnvis("merge part1 part2 --trust-code --run merged", code=2)
    assert re.search(named, told.err)
    assert "different plans" in told.err
    assert not list(Path("merged").glob("optimized/*"))


def test_a_target_of_another_plan_is_left_as_it_is(cnnvis: Call, results: Call) -> None:
    cnnvis("optimize -c exact.toml --run merged --layer fc3 --units 0-3 --seed 1")
    cnnvis("optimize -c exact.toml --run part --layer fc3 --shard 1/2")
    before = results(Path("merged"))
    told = cnnvis("merge part --trust-code --run merged", code=2)
    assert "different plans: seed is 1 there, 0 here" in told.err
    assert results(Path("merged")) == before


def test_a_search_in_shards(cnnvis: Call, results: Call) -> None:
    line = "search -c exact.toml --layer fc3 --units 1,4 --trials 5 --iterations 3"
    cnnvis(f"{line} --run whole")
    for i in (1, 2):
        cnnvis(f"{line} --run part{i} --shard {i}/2")
    told = cnnvis("merge part1 part2 --trust-code --run merged")
    assert "run cnnvis search there without --shard" in told.out
    cnnvis(f"{line} --run merged")
    assert results(Path("merged")) == results(Path("whole"))
    assert no_parts(Path("merged"))


def test_occlusions_in_shards(cnnvis: Call, results: Call) -> None:
    images = " ".join(f"images/class{i % 2}/{i:03d}.png" for i in range(4))
    line = f"occlude {images} -c exact.toml --layer conv2 --size 8 --stride 8"
    cnnvis(f"{line} --run whole")
    for i in (0, 1, 2):
        cnnvis(f"{line} --run shared --shard {i}/3")
    assert results(Path("shared")) == results(Path("whole"))
    assert len(results(Path("whole"))) == 4


def test_run_as_a_shard_leaves_the_rest_for_later(cnnvis: Call, results: Call) -> None:
    Path("all.toml").write_text(
        Path("exact.toml").read_text().replace('"project"]', '"project", "montage"]')
    )
    cnnvis("run all.toml --run whole")
    for i in (1, 2):
        told = cnnvis(f"run all.toml --run merged --shard {i}/2")
        assert "project is left for later, when cnnvis merge has joined the shards" in told.err
        assert "montage is left for later" in told.err
    cnnvis("merge merged --trust-code --run merged")
    for i in (1, 2):
        told = cnnvis(f"run all.toml --run merged --shard {i}/2")
        assert "project" not in told.err
        assert "montage is left for later" in told.err
    cnnvis("merge merged --trust-code --run merged")
    cnnvis("run all.toml --run merged")
    assert results(Path("merged")) == results(Path("whole"))
    pictures = sorted(str(path.relative_to("whole")) for path in Path("whole").rglob("*.png"))
    assert pictures
    assert all(Path("merged", p).read_bytes() == Path("whole", p).read_bytes() for p in pictures)
    assert no_parts(Path("merged"))


def test_a_folder_without_shards_is_refused(cnnvis: Call) -> None:
    Path("empty").mkdir()
    assert "holds no shard" in cnnvis("merge empty --run merged", code=2).err
    cnnvis("optimize -c exact.toml --run whole --layer conv1 --units 0")
    told = cnnvis("merge whole empty --trust-code --run merged", code=2)
    assert "empty: holds no shard" in told.err


# -- blocks -------------------------------------------------------------------------------------

UNITS, SIDE = 12, 3


def images_of(units: Sequence[int]) -> dict[str, Any]:
    """Made-up results of some units, (U, R = 2, ...): each depends on its unit alone."""
    number = np.array(units, np.int32)
    column = np.repeat(number[:, None], 2, axis=1)
    picture = np.ones((len(units), 2, SIDE, SIDE, 3), np.float16) * number.reshape(-1, 1, 1, 1, 1)
    return {
        "image": picture,
        "history": np.stack([column, -column], axis=-1).astype(np.float32),
        "unit": number,
        "activation": column.astype(np.float32),
        "start": column.astype(np.float32) / 2,
        "best_step": column,
        "outcome": (column % 3).astype(np.int8),
    }


def published(folder: Path, pieces: Sequence[tuple[set[int], int, bool]]) -> bytes:
    """Return the file after these selections, in blocks; some are published before the next."""
    file, parts = OptimizedFile(folder / "conv1.h5"), Parts(folder / "parts" / "x", "x")
    header = Header("made-up", "0", "conv1", "0", (0.0, 0.0, 0.0))
    for number, (units, size, now) in enumerate(pieces, 1):
        blocks = Blocks(parts, size)
        for block in blocks.missing(sorted(units), file.units("3").tolist(), lambda _: True):
            parts[block.name] = images_of(block.units)
        if blocks.units() and (now or number == len(pieces)):
            held = np.array(blocks.units(), np.int32)
            file.publish(header, {"3": Optimized({}, held, (2, SIDE, SIDE), 2, blocks)})
            parts.clear()
    return file.path.read_bytes()


PIECE = st.tuples(st.sets(st.integers(0, UNITS - 1)), st.integers(1, 5), st.booleans())


@settings(max_examples=12, deadline=None)
@given(st.lists(PIECE, max_size=5))
def test_any_selections_in_any_order_are_as_if_done_at_once(
    pieces: list[tuple[set[int], int, bool]],
) -> None:
    everything = set(range(UNITS))
    with TemporaryDirectory() as one, TemporaryDirectory() as other:
        at_once = published(Path(one), [(everything, UNITS, True)])
        assert published(Path(other), [*pieces, (everything, 3, True)]) == at_once


@given(st.sets(st.integers(0, 40), min_size=1), st.integers(1, 7), st.integers(1, 5))
def test_every_unit_is_in_a_block_of_exactly_one_shard(
    units: set[int], size: int, count: int
) -> None:
    blocks = Blocks(Parts(Path("nowhere"), "x"), size)
    shards = [
        blocks.missing(sorted(units), [], lambda number, i=i: number % count == i)  # type: ignore[misc]
        for i in range(count)
    ]
    cut = [unit for shard in shards for block in shard for unit in block.units]
    assert sorted(cut) == sorted(units)


def test_a_merge_says_what_is_not_there_yet(cnnvis: Call) -> None:
    """And the joined run knows what it was asked for: `status` and `verify` speak of it."""
    line = "optimize -c exact.toml --run part --layer conv1"
    cnnvis(f"{line} --shard 1/2")
    told = cnnvis("merge part --run both --trust-code").err
    found = re.search(r"both/optimized/conv1\.h5: \S+: (\d+) of (\d+) units that were asked", told)
    assert found, told
    assert 0 < int(found[1]) < int(found[2])
    assert f"{found[1]} of {found[2]} are there" in cnnvis("verify both --trust-code", 1).out
    cnnvis(f"{line} --shard 2/2")
    assert "asked for are there" not in cnnvis("merge part --run both --trust-code").err
    cnnvis("verify both --trust-code")
