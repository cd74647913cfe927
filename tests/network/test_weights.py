"""Weights from files: tensors only, all of them and no others, and never a line of code."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import Weights, WeightsEnum

from cnnvis_cli.errors import CnnvisError, UsageError
from cnnvis_cli.network.weights import load
from cnnvis_cli.network.zoo import OWN, Blueprint, blueprint

State = dict[str, Tensor]


class Tiny(nn.Module):
    """Every kind of tensor that a network can have: with batches counted, as torch counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).mean((2, 3)))  # type: ignore[no-any-return]


TINY = Blueprint("tiny", Tiny)


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty torch cache, and no way out of this machine."""

    def refuse(*_arguments: object, **_settings: object) -> None:
        raise AssertionError("tried to download")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "urlopen", refuse)


@pytest.fixture
def state() -> State:
    """Weights of the tiny network; `Tiny` itself draws others."""
    generator = torch.Generator().manual_seed(7)
    return {
        name: torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        for name, tensor in Tiny().state_dict().items()
    }


def held(module: nn.Module, state: State) -> bool:
    own = module.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[n], state[n]) for n in own)


# Files


def _safetensors(state: State, path: Path) -> Path:
    save_file(state, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def _checkpoint(state: State, path: Path) -> Path:
    torch.save(state, path.with_suffix(".pth"))
    return path.with_suffix(".pth")


def _old_checkpoint(state: State, path: Path) -> Path:
    torch.save(state, path.with_suffix(".pt"), _use_new_zipfile_serialization=False)
    return path.with_suffix(".pt")


def _training_state(state: State, path: Path) -> Path:
    whole = {"epoch": 3, "state_dict": OrderedDict(state), "optimizer": {"lr": 0.1}}
    torch.save(whole, path.with_suffix(".pth"))
    return path.with_suffix(".pth")


def _references(state: State, path: Path) -> Path:
    torch.save({"model": state, "args": None}, path.with_suffix(".pth"))
    return path.with_suffix(".pth")


def _parallel(state: State, path: Path) -> Path:
    return _checkpoint({f"module.{name}": tensor for name, tensor in state.items()}, path)


def _parallel_training_state(state: State, path: Path) -> Path:
    prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
    return _training_state(prefixed, path)


SAVERS = [
    *(_safetensors, _checkpoint, _old_checkpoint, _training_state, _references, _parallel),
    _parallel_training_state,
]


@pytest.mark.parametrize("save", SAVERS)
def test_weights_are_loaded_from(
    save: Callable[[State, Path], Path], state: State, tmp_path: Path
) -> None:
    path = save(state, tmp_path / "weights")
    module, digest = load(TINY, str(path))
    assert held(module, state)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_counts_of_batches_may_be_missing(state: State, tmp_path: Path) -> None:
    del state["norm.num_batches_tracked"]
    module, _ = load(TINY, str(_checkpoint(state, tmp_path / "weights")))
    assert torch.equal(module.state_dict()["norm.running_var"], state["norm.running_var"])


class Bomb:
    """Runs code when it is unpickled, as any pickle can."""

    def __init__(self, fuse: Path) -> None:
        self.fuse = fuse

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.fuse,)


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
@pytest.mark.parametrize("kind", ["torch", "old torch", "pickle"])
def test_code_among_the_weights_is_refused_and_does_not_run(
    kind: str, suffix: str, state: State, tmp_path: Path
) -> None:
    fuse, path = tmp_path / "burnt", tmp_path / f"weights{suffix}"
    found = {**state, "bomb": Bomb(fuse)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(found))
    else:
        torch.save(found, path, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(UsageError, match=r"refused.*could run code.*safetensors") as caught:
        load(TINY, str(path))
    assert str(path) in str(caught.value)
    assert not fuse.exists()
    torch.load(io.BytesIO(_pickled(Bomb(fuse))), weights_only=False)
    assert fuse.exists()  # it was a live one


def _pickled(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(Tiny(), tmp_path / "weights.pth")
    with pytest.raises(UsageError, match="refused"):
        load(TINY, str(tmp_path / "weights.pth"))


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x80\x02]q\x00.", bytes(100)])
def test_a_file_of_another_kind_is_an_error_with_its_name(
    content: bytes, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=re.escape(str(path))):
        load(TINY, str(path))


@pytest.mark.parametrize(
    "found", [[torch.ones(2)], torch.ones(2), {0: torch.ones(2)}, {"epoch": 3}, 5]
)
def test_a_checkpoint_without_a_state_dictionary_is_an_error(found: object, tmp_path: Path) -> None:
    torch.save(found, tmp_path / "weights.pth")
    with pytest.raises(UsageError, match=r"weights\.pth: holds no state_dict"):
        load(TINY, str(tmp_path / "weights.pth"))


@pytest.mark.parametrize("save", [_safetensors, _checkpoint, _old_checkpoint])
def test_a_damaged_file_is_an_error_that_a_person_can_read(
    save: Callable[[State, Path], Path], tmp_path: Path
) -> None:
    path = save({"conv.bias": torch.ones(4)}, tmp_path / "weights")
    whole, generator = path.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole[: generator.integers(len(whole) // 2, len(whole) + 1)])
        for place in generator.integers(0, len(damaged), 3):
            damaged[place] = generator.integers(256)
        path.write_bytes(damaged)
        # At best, tensors of the tiny network are missing.
        with pytest.raises(UsageError, match=re.escape(str(path))):
            load(TINY, str(path))


def test_a_file_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.pth"
    with pytest.raises(UsageError, match=re.escape(f"-w {path}: there is no such file")):
        load(TINY, str(path))


# Weights that do not fit


def test_missing_extra_and_misshapen_tensors_are_named(state: State, tmp_path: Path) -> None:
    state["conv.weight"] = torch.ones(4, 3, 5, 5)
    state["head.weight"] = torch.ones(2)
    del state["fc.bias"]
    path = _safetensors(state, tmp_path / "weights")
    with pytest.raises(UsageError, match="weights of another network") as caught:
        load(TINY, str(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "fc.bias is missing" in message
    assert "head.weight is not in the network" in message
    assert "conv.weight is (4, 3, 5, 5), not (4, 3, 3, 3)" in message


def test_of_many_misfits_the_rest_is_counted(tmp_path: Path) -> None:
    path = _safetensors({f"block{i}.weight": torch.ones(1) for i in range(5)}, tmp_path / "w")
    wanted = len(Tiny().state_dict()) - 1  # the count of batches is optional
    with pytest.raises(UsageError, match=f"conv.weight is missing.* and {wanted + 5 - 3} more$"):
        load(TINY, str(path))


def test_a_misfit_changes_no_weight(state: State, tmp_path: Path) -> None:
    built: list[Tiny] = []

    def build() -> Tiny:
        built.append(Tiny())
        return built[-1]

    del state["fc.bias"]
    with pytest.raises(UsageError):
        load(Blueprint("tiny", build), str(_checkpoint(state, tmp_path / "weights")))
    assert not torch.equal(built[0].conv.weight, state["conv.weight"])


def test_a_number_of_one_is_not_taken_for_many(state: State, tmp_path: Path) -> None:
    state["norm.weight"] = torch.ones(1)  # would broadcast
    with pytest.raises(UsageError, match=r"norm\.weight is \(1,\), not \(4,\)"):
        load(TINY, str(_checkpoint(state, tmp_path / "weights")))


# Weights that are none


@pytest.mark.parametrize(
    ("spoil", "flaw"),
    [
        (lambda weight: weight * float("nan"), "holds NaN"),
        (lambda weight: weight + float("inf"), "holds NaN or infinite values"),
        (lambda weight: weight.double() * 1e300, "holds NaN or infinite values"),
        (lambda weight: weight.to(torch.complex64), "is torch.complex64"),
        (lambda weight: weight.to_sparse(), "torch.sparse_coo"),
        (lambda weight: weight.to("meta"), "on meta: not plain real numbers"),
    ],
)
def test_what_cannot_be_weights_is_named(
    spoil: Callable[[Tensor], Tensor], flaw: str, state: State, tmp_path: Path
) -> None:
    state["conv.weight"] = spoil(state["conv.weight"])
    path = _checkpoint(state, tmp_path / "weights")
    with pytest.raises(UsageError, match=re.escape(flaw)) as caught:
        load(TINY, str(path))
    assert str(caught.value).startswith(f"{path}: conv.weight ")


def test_a_running_mean_that_is_no_number_is_named(state: State, tmp_path: Path) -> None:
    state["norm.running_mean"][1] = float("nan")
    with pytest.raises(UsageError, match=r"norm\.running_mean holds NaN"):
        load(TINY, str(_safetensors(state, tmp_path / "weights")))


def test_an_array_that_stands_for_a_terabyte_is_never_made(tmp_path: Path) -> None:
    state = {"conv.weight": torch.ones(1).expand(1 << 40)}  # one number, told to be many
    with pytest.raises(UsageError, match="weights of another network"):
        load(TINY, str(_checkpoint(state, tmp_path / "weights")))


def test_a_compressed_checkpoint_is_refused_unread(state: State, tmp_path: Path) -> None:
    path = _checkpoint(state, tmp_path / "weights")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(UsageError, match=r"refused, .* compressed .* torch\.save"):
        load(TINY, str(path))


def test_a_pickle_that_asks_for_petabytes_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    size = b"\x8a\x08" + struct.pack("<q", 1 << 50)
    path.write_bytes(b"\x80\x02cbuiltins\nbytearray\n" + size + b"\x85R.")
    with pytest.raises(UsageError, match=r"weights\.pth: not a torch checkpoint"):
        load(TINY, str(path))


@pytest.mark.filterwarnings("ignore")  # torch has given it up
def test_torchscript_is_refused(tmp_path: Path) -> None:
    traced = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))  # type: ignore[no-untyped-call]
    torch.jit.save(traced, str(tmp_path / "weights.pt"))
    with pytest.raises(UsageError, match=r"weights\.pt: refused, .* TorchScript"):
        load(TINY, str(tmp_path / "weights.pt"))


HEADERS = {  # a safetensors header and the length that it is said to have
    "endless": (b"{}", 1 << 63),
    "longer than the file": (b"{}", 99_999_999),
    "nested": (b"[" * 100_000, 100_000),
    "beyond all numbers": (
        b'{"a":{"dtype":"F32","shape":[4611686018427387904,8],"data_offsets":[0,8]}}',
        72,
    ),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_safetensors_header_that_lies_is_an_error(kind: str, tmp_path: Path) -> None:
    header, length = HEADERS[kind]
    path = tmp_path / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", length) + header + bytes(8))
    with pytest.raises(UsageError, match=r"weights\.safetensors: not a safetensors file"):
        load(TINY, str(path))


# Names


@pytest.fixture
def squeezenet() -> Blueprint:
    """torchvision's smallest network with trained weights of one name."""
    return blueprint("squeezenet1_1")


def _cached(plan: Blueprint, tmp_path: Path) -> Path:
    """Return where torchvision keeps the weights of a network once they are downloaded."""
    name = plan.torchvision_weights["DEFAULT"].url.rpartition("/")[2]
    return tmp_path / "torch" / "hub" / "checkpoints" / str(name)


@pytest.mark.parametrize("weights", [None, "DEFAULT", "IMAGENET1K_V1"])
def test_trained_weights_are_taken_from_torch_s_cache(
    weights: str | None, squeezenet: Blueprint, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    trained = squeezenet.build().state_dict()
    path = _cached(squeezenet, tmp_path)
    path.parent.mkdir(parents=True)
    torch.save(trained, path)
    module, digest = load(squeezenet, weights)
    assert held(module, trained)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


class Answer(io.BytesIO):
    """What a server sends."""

    def info(self) -> Message:
        message = Message()
        message["Content-Length"] = str(len(self.getvalue()))
        return message


def _serve(content: bytes) -> Callable[..., Answer]:
    return lambda *_arguments, **_settings: Answer(content)


def test_trained_weights_are_downloaded_once(
    squeezenet: Blueprint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    trained = squeezenet.build().state_dict()
    content = _pickled(trained)
    digest = hashlib.sha256(content).hexdigest()

    url = f"https://download.pytorch.org/models/squeezenet-{digest[:8]}.pth"

    class Trained(WeightsEnum):  # type: ignore[misc]
        DEFAULT = Weights(url, transforms=None, meta={})

    plan = Blueprint("squeezenet1_1", squeezenet.build, torchvision_weights=Trained)
    monkeypatch.setattr(torch.hub, "urlopen", _serve(content))
    assert held(load(plan, "DEFAULT")[0], trained)
    monkeypatch.undo()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "urlopen", _serve(b"not asked again"))
    module, found = load(plan, "DEFAULT")
    assert held(module, trained)
    assert found == digest


@pytest.mark.parametrize(
    "error",
    [
        URLError("Name or service not known"),
        HTTPError("https://download.pytorch.org", 404, "Not Found", Message(), None),
        TimeoutError("timed out"),
        ConnectionResetError("Connection reset by peer"),
    ],
)
def test_a_failed_download_says_what_to_do(
    error: Exception, squeezenet: Blueprint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object, **_settings: object) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "urlopen", fail)
    name = _cached(squeezenet, tmp_path).name
    with pytest.raises(CnnvisError, match=f"cannot download {name} .*-w {name}") as caught:
        load(squeezenet, None)
    assert caught.value.exit_code == 1
    assert not _cached(squeezenet, tmp_path).exists()


def test_a_download_of_something_else_is_not_kept(
    squeezenet: Blueprint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "urlopen", _serve(b"<html>Please log in</html>"))
    with pytest.raises(CnnvisError, match=r"cannot download squeezenet1_1-.*hash"):
        load(squeezenet, "DEFAULT")
    assert not _cached(squeezenet, tmp_path).exists()


def test_a_download_is_quiet_where_nobody_watches(
    squeezenet: Blueprint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.hub, "urlopen", _serve(b"x" * 100_000))
    with pytest.raises(CnnvisError):
        load(squeezenet, "DEFAULT")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("model", "weights", "remedy"),
    [
        ("squeezenet1_1", "IMAGENET1K_V11", "did you mean 'IMAGENET1K_V1'?"),
        ("squeezenet1_1", "default", "choose from: "),
        ("squeezenet1_1", "randon", "did you mean 'random'?"),
        ("demo", "weights", "choose from: DEFAULT, random, FILE"),
        ("demo", "DEFAUTL", "did you mean 'DEFAULT'?"),
        ("caffenet", "DEFAULT", "choose from: random, FILE"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(
    model: str, weights: str, remedy: str
) -> None:
    plan = blueprint(model)
    small = Blueprint(
        plan.name, Tiny, torchvision_weights=plan.torchvision_weights, bundled=plan.bundled
    )
    with pytest.raises(UsageError) as caught:
        load(small, weights)
    assert f"{model} has no weights {weights!r}" in str(caught.value)
    assert remedy in str(caught.value)


def test_a_network_without_weights_asks_for_them() -> None:
    for name in ("caffenet", "zfnet"):
        with pytest.raises(UsageError, match=f"{name} comes without weights; .* -w FILE"):
            load(OWN[name](), None)


def test_the_bundled_network_brings_its_own(tmp_path: Path) -> None:
    plan = blueprint("demo")
    assert plan.bundled is not None
    module, digest = load(plan, None)
    assert digest == hashlib.sha256(plan.bundled.read_bytes()).hexdigest()
    assert digest == load(plan, "DEFAULT")[1] == load(plan, str(plan.bundled))[1]
    assert digest != load(plan, "random")[1]
    assert all(bool(p.isfinite().all()) for p in module.parameters())


# Weights without a file


def test_random_weights_are_a_function_of_the_seed() -> None:
    torch.manual_seed(1)
    one, first = load(TINY, "random", seed=3)
    torch.manual_seed(2)
    two, second = load(TINY, "random", seed=3)
    three, third = load(TINY, "random", seed=4)
    assert first == second != third
    assert held(two, one.state_dict())
    assert not held(three, one.state_dict())


def test_drawing_weights_disturbs_nobody_else_s_numbers() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load(TINY, "random", seed=3)
    assert torch.equal(torch.rand(3), expected)


def test_a_person_s_own_network_keeps_the_weights_it_comes_with() -> None:
    torch.manual_seed(9)
    own = Tiny()
    module, digest = load(Blueprint("package.module:function", lambda: own), None)
    assert module is own
    again = load(Blueprint("package.module:function", lambda: own), None)[1]
    assert digest == again
    with torch.no_grad():
        own.fc.bias[1] += 1
    assert load(Blueprint("package.module:function", lambda: own), None)[1] != digest


def test_what_a_person_s_function_returns_must_be_a_network() -> None:
    def strange() -> nn.Module:
        return 5  # type: ignore[return-value]

    with pytest.raises(UsageError, match="package:function: returned int, not a network"):
        load(Blueprint("package:function", strange), None)
