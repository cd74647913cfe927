"""Files of weights by content: what trainers write around the tensors, and what is no such file."""

from __future__ import annotations

import argparse
import io
import pathlib
import re
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cnnvis_cli.errors import UsageError
from cnnvis_cli.network.guest import Guest
from cnnvis_cli.network.pickles import TooHeavy, weigh
from cnnvis_cli.network.weights import load
from cnnvis_cli.network.zoo import Blueprint, CaffeNet

State = dict[str, Tensor]


class Small(nn.Module):
    """A network whose names share no beginning."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).mean((2, 3)))  # type: ignore[no-any-return]


SMALL = Blueprint("own:small", Small)


def drawn(module: nn.Module, seed: int = 3) -> State:
    """Return weights of a network, others than its own."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        for name, tensor in module.state_dict().items()
    }


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def save(value: Any, name: str, folder: Path) -> Path:
    path = folder / name
    if name.lower().endswith(".safetensors"):
        save_file(value, path)
    else:
        torch.save(value, path)
    return path


def loaded(path: Path, plan: Blueprint = SMALL, ema: bool = False) -> tuple[nn.Module, list[str]]:
    """Return the network and what was said about its weights."""
    said: list[str] = []
    return load(plan, str(path), ema=ema, say=said.append)[0], said


def same(module: nn.Module, state: State) -> bool:
    own = module.state_dict()
    names = [name for name in own if not name.endswith("num_batches_tracked")]
    return all(torch.equal(own[name], state[name]) for name in names)


@pytest.mark.parametrize(
    "name", ["a.ckpt", "a.bin", "a.pth.tar", "a.PTH", "a.pkl", "a", "a.PT", "a.safetensors.pt"]
)
def test_the_suffix_does_not_matter(name: str, tmp_path: Path) -> None:
    state = drawn(Small())
    module, said = loaded(save(state, name, tmp_path))
    assert same(module, state)
    assert not said


def test_tensors_saved_safely_are_read_under_any_name(tmp_path: Path) -> None:
    state = drawn(Small())
    for name in ("a.bin", "b.SAFETENSORS", "c"):
        save_file(state, tmp_path / name)
        assert same(loaded(tmp_path / name)[0], state)
    torch.save(state, tmp_path / "d.safetensors")
    assert same(loaded(tmp_path / "d.safetensors")[0], state)


PREFIXES = ["module.", "model.", "backbone.", "net.", "module.model.", "encoder.body.", "x."]


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_of_all_names_is_removed_and_told(prefix: str, name: str, tmp_path: Path) -> None:
    state = drawn(Small())
    module, said = loaded(save(under(prefix, state), name, tmp_path))
    assert same(module, state)
    assert said == [f"{tmp_path / name}: names are read without the prefix {prefix!r}"]


def test_a_prefix_of_the_network_is_added(tmp_path: Path) -> None:
    plan = Blueprint("own:wrapped", lambda: nn.ModuleDict({"net": Small()}))
    state = drawn(Small())
    module, said = loaded(save(state, "a.pth", tmp_path), plan)
    assert same(module.get_submodule("net"), state)
    assert "with the prefix 'net.'" in said[0]


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: name.replace("stem.", "stem._orig_mod."),
        lambda name: f"model.{name.replace('stem.', 'stem._checkpoint_wrapped_module.')}",
        lambda name: f"_fsdp_wrapped_module.{name}",
    ],
)
def test_what_torch_wraps_around_a_network_is_removed(
    rename: Callable[[str], str], tmp_path: Path
) -> None:
    state = drawn(Small())
    renamed = {rename(name): tensor for name, tensor in state.items()}
    module, said = loaded(save(renamed, "a.pth", tmp_path))
    assert same(module, state)
    assert len(said) == 1


def test_a_prefix_of_some_names_is_not_removed(tmp_path: Path) -> None:
    state = drawn(Small())
    state["module.head.bias"] = state.pop("head.bias")
    with pytest.raises(UsageError, match=r"head\.bias is missing; module\.head\.bias is not in"):
        loaded(save(state, "a.pth", tmp_path))


def test_names_that_fit_only_without_a_part_are_refused(tmp_path: Path) -> None:
    """Two heads: removing their prefix would leave one name for two tensors."""
    state = under("model.", drawn(Small())) | {"teacher.head.bias": torch.ones(3)}
    with pytest.raises(UsageError, match="weights of another network"):
        loaded(save(state, "a.pth", tmp_path))


@pytest.mark.parametrize("key", ["state_dict", "model", "net", "model_state_dict", "weights"])
def test_the_only_dictionary_of_tensors_is_taken(key: str, tmp_path: Path) -> None:
    state = drawn(Small())
    found = {
        "epoch": 7,
        "best": np.float64(0.5),
        "args": argparse.Namespace(lr=0.1, out=pathlib.PosixPath("/tmp")),
        "more": types.SimpleNamespace(a=1),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(4, 3, 3, 3)}}, "param_groups": [{}]},
        "random": np.random.default_rng(0).bit_generator.state["state"]["state"] % 2**60,
        key: state,
    }
    module, said = loaded(save(found, "a.pth", tmp_path))
    assert same(module, state)
    assert not said


def test_it_may_lie_deeper(tmp_path: Path) -> None:
    state = drawn(Small())
    found = {"state": {"networks": {"student": under("module.", state)}, "step": 3}}
    module, said = loaded(save(found, "a.pth", tmp_path))
    assert same(module, state)
    assert "module." in said[0]


@pytest.mark.parametrize("key", ["state_dict_ema", "ema", "model_ema", "ema_state_dict", "shadow"])
def test_averaged_weights_are_told_and_chosen(key: str, tmp_path: Path) -> None:
    usual, averaged = drawn(Small(), 1), drawn(Small(), 2)
    path = save({"state_dict": usual, key: averaged}, "a.pth", tmp_path)
    module, said = loaded(path)
    assert same(module, usual)
    assert said == [f"{path}: takes state_dict, not {key} (--ema takes it)"]
    module, said = loaded(path, ema=True)
    assert same(module, averaged)
    assert said == [f"{path}: takes {key}, not state_dict"]
    digests = {load(SMALL, str(path), ema=ema)[1] for ema in (False, True)}
    assert len(digests) == 2


def test_averaged_weights_alone_are_taken_and_told(tmp_path: Path) -> None:
    averaged = drawn(Small())
    path = save({"model_ema": averaged, "epoch": 1}, "a.pth", tmp_path)
    for ema in (False, True):
        module, said = loaded(path, ema=ema)
        assert same(module, averaged)
        assert said == [f"{path}: takes model_ema, an average of the weights"]


def test_averaged_weights_that_are_not_there_are_an_error(tmp_path: Path) -> None:
    path = save({"state_dict": drawn(Small()), "epoch": 3}, "a.pth", tmp_path)
    with pytest.raises(UsageError, match=r"--ema: holds no averaged.*keys are state_dict, epoch"):
        loaded(path, ema=True)
    for weights in (None, "random"):
        with pytest.raises(UsageError, match="--ema chooses among the weights of a file"):
            load(SMALL, weights, ema=True)


def test_torch_s_own_average_is_one(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(Small())
    path = save(averaged.state_dict(), "a.pth", tmp_path)
    for ema in (False, True):
        module, said = loaded(path, ema=ema)
        assert same(module, averaged.module.state_dict())
        assert any(line.endswith("no layer uses: n_averaged") for line in said)


def test_two_networks_in_one_file_are_not_chosen_from(tmp_path: Path) -> None:
    found = {"student": drawn(Small(), 1), "teacher": drawn(Small(), 2)}
    with pytest.raises(UsageError, match="holds several networks' weights: student, teacher"):
        loaded(save(found, "a.pth", tmp_path))


def test_counts_of_a_profiler_are_ignored_by_name(tmp_path: Path) -> None:
    state = drawn(Small())
    counts = {
        f"{part}total_{of}": torch.ones(1) for part in ("", "stem.") for of in ("ops", "params")
    }
    path = save(under("module.", state | counts), "a.pth", tmp_path)
    module, said = loaded(path)
    assert same(module, state)
    assert said[1] == f"{path}: ignores 4 entries that no layer uses: total_ops, total_params"
    with pytest.raises(UsageError, match="temperature is not in the network"):
        loaded(save(state | {"temperature": torch.ones(1)}, "b.pth", tmp_path))


def test_what_does_not_fit_is_told_with_the_file_s_keys(tmp_path: Path) -> None:
    path = save({"epoch": 3, "lr": [0.1], "notes": "none"}, "a.pth", tmp_path)
    with pytest.raises(UsageError, match="no state_dict; its keys are epoch, lr, notes; save the"):
        loaded(path)
    path = save({"epoch": 3, "model": {"conv.weight": torch.ones(2)}}, "b.pth", tmp_path)
    with pytest.raises(UsageError, match=r"network under 'model': .*; its keys are epoch, model"):
        loaded(path)


# Another number of classes


def sized() -> Blueprint:
    return Blueprint("small", Small, default_weights="DEFAULT", build_for=Small)


def test_classes_are_counted_by_the_last_layer(tmp_path: Path) -> None:
    state = drawn(Small(7))
    path = save({"state_dict": under("module.", state)}, "a.ckpt", tmp_path)
    module, said = loaded(path, sized())
    assert same(module, state)
    assert f"{path}: the network has 7 classes, by the size of its last layer" in said


def test_a_network_of_one_s_own_is_told_to_be_built_for_them(tmp_path: Path) -> None:
    path = save(drawn(Small(7)), "a.pth", tmp_path)
    with pytest.raises(
        UsageError, match=r"head\.weight is \(7, 4\), not \(3, 4\).* of 7 classes: "
    ):
        loaded(path)


def test_other_differences_are_no_classes(tmp_path: Path) -> None:
    state = drawn(Small(7))
    state["stem.0.weight"] = torch.ones(4, 3, 5, 5)
    with pytest.raises(UsageError, match=r"stem\.0\.weight is \(4, 3, 5, 5\)"):
        loaded(save(state, "a.pth", tmp_path), sized())


def test_the_papers_networks_have_other_classes_too() -> None:
    plan = Blueprint("caffenet", CaffeNet, build_for=CaffeNet)
    with torch.device("meta"):
        assert plan.build_for is not None
        assert plan.build_for(5).fc8.out_features == 5  # type: ignore[union-attr]


# Files of another kind


FOREIGN = {
    "keras.h5": (b"\x89HDF\r\n\x1a\n", "is an HDF5 file, as Keras writes; save the weights with"),
    "weights.pth.gz": (b"\x1f\x8b\x08", "is compressed; unpack it"),
    "weights.npy": (b"\x93NUMPY\x01", "is a NumPy array; save"),
    "pulled.pth": (b"version https://git-lfs.github.com/spec/v1", "is a pointer of Git LFS; fetch"),
    "net.onnx": (b"\x08\x07", r"is an ONNX network; docs/tutorial\.md"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_another_kind_are_told_by_name(name: str, tmp_path: Path) -> None:
    start, told = FOREIGN[name]
    (tmp_path / name).write_bytes(start + bytes(600))
    with pytest.raises(UsageError, match=f"{re.escape(name)}: {told}"):
        loaded(tmp_path / name)


def test_archives_of_another_kind_are_told_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "jax.npz", kernel=np.ones(3))
    with pytest.raises(UsageError, match="is a NumPy archive"):
        loaded(tmp_path / "jax.npz")
    with Guest("x:y").surroundings():  # with torch's own precision
        program = torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(program, tmp_path / "net.pt2")
    with pytest.raises(UsageError, match=r"is an exported program \(\.pt2\).*docs/tutorial\.md"):
        loaded(tmp_path / "net.pt2")


def test_a_folder_and_a_missing_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder; name the file"):
        loaded(tmp_path)
    for name in ("nothing", "nothing.ckpt"):
        with pytest.raises(UsageError, match="there is no such file"):
            loaded(tmp_path / name)


class Run:
    """An object that trainers do not save; a class that is not asked for."""


def test_what_could_run_code_is_refused_by_its_name(tmp_path: Path) -> None:
    path = save({"state_dict": drawn(Small()), "callback": Run()}, "a.pth", tmp_path)
    with pytest.raises(UsageError, match=r"could run code \(.*Run\); save the state_dict alone"):
        loaded(path)


# Files that would never end


def nested(levels: int, wide: bool = True) -> bytes:
    """Return a pickle of a dictionary with one key: a tuple of tuples, `levels` deep.

    If `wide`, each holds the one below twice, and the last is hashed 2 to the `levels` times.
    """
    content = b"\x80\x02})"
    for level in range(levels):
        again = b"q" + bytes([level]) + b"h" + bytes([level]) + b"\x86"
        content += again if wide else b"\x85"
    return content + b"K\x01s."


def zipped(content: bytes, path: Path) -> None:
    """Write a checkpoint with another pickle in it."""
    usual = io.BytesIO()
    torch.save({}, usual)
    with zipfile.ZipFile(usual) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, content if name.endswith("data.pkl") else source.read(name))


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("kind", ["pickle", "zip", "second pickle", "zip at the end"])
def test_a_file_that_would_never_end_is_refused_at_once(
    kind: str, wide: bool, tmp_path: Path
) -> None:
    path, bomb = tmp_path / "a.pth", nested(60 if wide else 250, wide)
    if kind == "zip":
        zipped(bomb, path)
    elif kind == "zip at the end":  # which is not what torch reads
        zipped(b"\x80\x02}.", path)
        path.write_bytes(bomb + path.read_bytes())
    else:
        before = io.BytesIO()
        torch.save({}, before, _use_new_zipfile_serialization=False)
        magic = before.getvalue()[: before.getvalue().index(b".") + 1]
        path.write_bytes((magic if kind == "second pickle" else b"") + bomb)
    with pytest.raises(UsageError, match=r"a\.pth: refused, because it nests values so deeply"):
        loaded(path)


@pytest.mark.parametrize(
    "around",
    [
        lambda bomb: b"\x80\x02ccollections\nOrderedDict\n" + bomb + b"\x85R.",
        lambda bomb: b"\x80\x02c__builtin__\nset\n]" + bomb + b"a\x85R.",
        lambda bomb: b"\x80\x02}" + bomb + b"Q.",
    ],
)
def test_it_is_refused_wherever_it_stands(around: Callable[[bytes], bytes]) -> None:
    with pytest.raises(TooHeavy):
        weigh(io.BytesIO(around(nested(60)[3:-4])))


def test_a_large_training_state_is_not_too_heavy(tmp_path: Path) -> None:
    """Of 3,000 tensors, with an optimizer's state, and a list of a million losses."""
    state = {f"layer{i}.weight": torch.ones(2) for i in range(3000)}
    found = {
        "model": state,
        "optimizer": {i: {"exp_avg": torch.ones(2), "step": i} for i in range(3000)},
        "losses": [0.5] * 100_000,
        "random": (3, tuple(range(625)), None),
    }
    path = save(found, "a.pth", tmp_path)
    with zipfile.ZipFile(path) as archive:
        pickled = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        with archive.open(pickled) as file:
            assert weigh(file)
