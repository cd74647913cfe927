"""Your own code as a guest: what it needs is there, and what it changes is put back."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from cnnvis_cli.errors import Stopped, UsageError
from cnnvis_cli.network.guest import Guest, functions_of
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.ordinary import channels_taken, ordinary, takes_grey, type_remark
from cnnvis_cli.network.weights import load
from cnnvis_cli.network.zoo import blueprint
from cnnvis_cli.nouns import Preprocessing
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.network_loading import load_network

NET = "nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())"


@pytest.fixture(autouse=True)
def forgotten(tmp_path: Path) -> Iterator[None]:
    """Forget the modules that a test has imported from its folder."""
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def write(name: str, text: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(f"import torch\nfrom torch import nn\n{text}\n")


def built(name: str) -> Any:
    return Guest(name).build()


@pytest.mark.parametrize(
    "what",
    [
        f"net = {NET}",
        f"def net(): return {NET}",
        f"def net(classes=3, *more, **settings): return {NET}",
        f"net = lambda: {NET}",
        "class net(nn.Sequential):\n    def __init__(self): super().__init__(nn.Conv2d(3, 4, 3))",
        f"from functools import partial\nnet = partial(lambda _: {NET}, 3)",
    ],
)
def test_an_object_a_class_and_a_function_are_networks(what: str) -> None:
    write("mine.py", what)
    assert isinstance(ordinary("mine:net", built("mine:net")), nn.Module)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"def net(): return {NET}", "all its parameters are random numbers, 0.weight for one"),
        (
            f"def net():\n    found = {NET}\n    nn.init.ones_(found[0].weight)\n    return found",
            "1 of its 2 parameters are random numbers, 0.bias for one; give trained ones with "
            "--weights, or load them in your function",
        ),
        ("def net(): return nn.Sequential(nn.LazyConv2d(4, 3))", "all its parameters are random"),
        (f"def net():\n    torch.manual_seed(7)\n    return {NET}", ""),
        ("def net():\n    found = nn.Conv2d(3, 4, 3)\n"
         "    found.load_state_dict({'weight': torch.ones(4, 3, 3, 3), 'bias': torch.ones(4)})\n"
         "    return nn.Sequential(found)", ""),
    ],
    ids=["all", "some", "lazy", "seeded", "loaded"],
)  # fmt: skip
def test_random_numbers_of_your_own_function_are_told(text: str, told: str) -> None:
    write("mine.py", text)
    said: list[str] = []
    load_network(Plan(model="mine:net", trust_code=True, device="cpu"), said.append)
    assert "".join(said).startswith(f"mine:net: {told}" if told else "")
    assert len(said) == bool(told)
    said.clear()
    load_network(Plan(model="mine:net", trust_code=True, weights="random"), said.append)
    assert not said, "they were asked for"


def test_an_object_is_copied_so_that_two_networks_are_two() -> None:
    write("mine.py", f"net = {NET}")
    one, other = built("mine:net"), built("mine:net")
    one[0].weight.data.zero_()
    assert other[0].weight.abs().sum() > 0


def test_a_file_is_named_by_its_path(tmp_path: Path) -> None:
    write("nets/helper.py", f"def make(): return {NET}")
    write("nets/mine.py", "import helper\ndef net(): return helper.make()")
    assert isinstance(built("nets/mine.py:net"), nn.Module)
    assert isinstance(built(f"{Path('nets/mine.py').resolve()}:net"), nn.Module)
    with pytest.raises(UsageError, match=r"cannot import it: there is no .*nets/yours\.py"):
        built("nets/yours.py:net")


def test_a_part_of_a_module_is_named_with_dots() -> None:
    write("mine.py", f"class Nets:\n    @staticmethod\n    def small(): return {NET}")
    assert isinstance(built("mine:Nets.small"), nn.Module)


def test_what_is_imported_late_is_found() -> None:
    write("helper.py", f"def make(): return {NET}")
    write("mine.py", "def net():\n    from helper import make\n    return make()")
    assert isinstance(built("mine:net"), nn.Module)


def test_a_file_without_a_function_is_answered_with_its_functions() -> None:
    write("mine.py", "def net(): pass\ndef other(needed): pass\ndef third(given=1): pass")
    assert functions_of(Path("mine.py")) == ["net", "third"]
    with pytest.raises(UsageError, match=r"write mine\.py:FUNCTION, one of net, third"):
        blueprint("mine.py", trust_code=True)
    with pytest.raises(UsageError, match=r"--model yours\.py: there is no such file"):
        blueprint("yours.py", trust_code=True)


CHANGES = """
import os, sys
os.makedirs('other', exist_ok=True)
def change():
    os.chdir('other' if os.path.isdir('other') else '.')
    sys.argv = ['changed']
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
    torch.set_default_device('meta')
    torch.set_float32_matmul_precision('medium')
"""


def process_wide() -> tuple[Any, ...]:
    return (
        Path.cwd(),
        sys.argv,
        list(sys.path),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.get_default_device(),
        torch.backends.cudnn.benchmark,
        getattr(torch.backends.cuda.matmul, "fp32_precision", None),
        getattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision", None),
        sys.stdout,
    )


@pytest.mark.parametrize("when", ["import", "build", "both", "failure"])
def test_what_it_changes_is_put_back(when: str) -> None:
    here = "change()" if when in ("import", "both") else ""
    then = "change()" if when != "import" else ""
    last = "raise ValueError" if when == "failure" else f"with torch.device('cpu'): return {NET}"
    write("mine.py", f"{CHANGES}\n{here}\ndef net():\n    {then}\n    {last}")
    before = process_wide()
    if when == "failure":
        with pytest.raises(UsageError, match="your code: ValueError"):
            built("mine:net")
    else:
        assert isinstance(built("mine:net"), nn.Module)
    assert process_wide() == before


def test_it_goes_on_in_the_folder_that_it_went_to() -> None:
    write(
        "mine.py",
        "import os, pathlib\nos.makedirs('there'); os.chdir('there')\n"
        f"pathlib.Path('here').touch()\ndef net():\n    open('here').close()\n    return {NET}",
    )
    assert isinstance(built("mine:net"), nn.Module)
    assert not Path("here").exists()


def test_what_it_prints_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    write("mine.py", f"print('on import')\ndef net():\n    print('on building')\n    return {NET}")
    built("mine:net")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == ["on import", "on building"]


FAILURES = {
    "import nothing_of_this_name": r"ModuleNotFoundError: No module named .* \(mine\.py, line 3\)",
    "def net(:": r"your code: SyntaxError: .* \(mine\.py, line 3\)",
    "def net():\n    return 1 / 0": r"ZeroDivisionError: division by zero \(mine\.py, line 4\)",
    "def net():\n    raise SystemExit(2)": r"it ends the program \(mine\.py, line 4\); put",
    "exit()": r"it ends the program \(mine\.py, line 3\)",
    "def net():\n    nn.Conv2d(3, 4)": r"TypeError: .*kernel_size.* \(mine\.py, line 4\)",
    "def net():\n    raise ValueError('two\\nlines')": r"ValueError: two \(mine\.py, line 4\)",
    "def net(classes): pass": r"needs classes; write a function without arguments",
    "class net(nn.Module):\n    def __init__(self, a, b): pass": r"needs a, b; write",
    "nett = 3": r"mine has no net; did you mean|mine has no net; choose from",
}


@pytest.mark.parametrize("text", FAILURES)
def test_its_errors_are_told_with_file_and_line(text: str) -> None:
    write("mine.py", text)
    with pytest.raises(UsageError, match=FAILURES[text]) as caught:
        built("mine:net")
    assert "\n" not in str(caught.value)


def test_a_command_line_that_is_parsed_on_import_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(
        "train.py",
        "import argparse\np = argparse.ArgumentParser()\np.add_argument('--data', required=True)\n"
        "a = p.parse_args()",
    )
    with pytest.raises(UsageError, match=r'line 6\); put .* under if __name__ == "__main__"'):
        built("train:net")
    assert capsys.readouterr().err == ""


def test_a_signal_is_no_error_of_its_own() -> None:
    guest = Guest("mine:net")
    with pytest.raises(KeyboardInterrupt), guest.at_work():
        raise KeyboardInterrupt
    with pytest.raises(Stopped, match="told to"), guest.at_work():
        raise Stopped("told to")


def test_a_name_that_is_taken_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    write("types.py", f"def net(): return {NET}")
    with pytest.raises(UsageError, match=r"types\.py has the name of a module .*; rename it"):
        built("types:net")


def test_a_folder_that_is_removed_is_left(tmp_path: Path) -> None:
    write(
        "mine.py",
        f"import os\ndef net():\n    os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')\n"
        f"    return {NET}",
    )
    assert isinstance(built("mine:net"), nn.Module)
    assert Path.cwd() == Path(os.environ.get("PWD", "")) or Path.cwd().is_dir()


# Any module as an ordinary one


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))


@pytest.mark.parametrize(
    "wrap",
    [
        torch.compile,
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        lambda module: nn.DataParallel(cast(nn.Module, torch.compile(module))),
    ],
)
def test_what_torch_wraps_around_a_network_is_taken_off(wrap: Any) -> None:
    module = small()
    found = ordinary("x", wrap(module))
    assert [name for name, _ in found.named_modules()] == ["", "0", "1", "2"]
    assert torch.equal(found[0].weight, module[0].weight)  # type: ignore[index]


def test_what_is_wrapped_around_a_part_is_taken_off_too() -> None:
    module = small()
    module[0] = torch.compile(module[0])  # type: ignore[operator, index]
    module.compile()
    found = ordinary("x", module)
    assert list(found.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert found._compiled_call_impl is None


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_become_float32_and_are_told(kind: torch.dtype) -> None:
    module = small().to(kind)
    wanted = module[0].weight.float()  # type: ignore[index]
    name = str(kind).removeprefix("torch.")
    assert type_remark(module) == f"its parameters are {name}; it computes in float32"
    found = ordinary("x", module)
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    assert torch.equal(found[0].weight, wanted)  # type: ignore[index]
    assert type_remark(small()) == ""


def test_parameters_of_inference_mode_pass_gradients() -> None:
    with torch.inference_mode():
        module = small()
    found = ordinary("x", module).requires_grad_(False)
    image = torch.zeros(1, 3, 9, 9, requires_grad=True)
    found(image).sum().backward()
    assert image.grad is not None


def _meta() -> nn.Module:
    with torch.device("meta"):
        return small()


def _exported() -> Any:
    with Guest("x:y").surroundings():  # with torch's own precision
        return torch.export.export(small().eval(), (torch.zeros(1, 3, 9, 9),))


def _quantized() -> nn.Module:
    from torch.ao.nn import quantized

    return nn.Sequential(quantized.ReLU6())  # type: ignore[no-untyped-call]


class Program:
    """What is no network, from a library called onnx."""

    __module__ = "onnx.fake"


NO_NETWORKS = {
    "is TorchScript, whose layers cannot be watched": lambda: torch.jit.script(small()),
    "an exported program .*tutorial": _exported,
    "is quantized: .* before that": _quantized,
    r"0\.weight has no numbers \(it is on the device meta\)": _meta,
    r"0\.weight is complex": lambda: nn.Sequential(nn.Linear(2, 2, dtype=torch.complex64)),
    "returned tuple, not a network; return the network alone": lambda: (small(), None),
    "returned dict, .* --weights": lambda: small().state_dict(),
    "returned NoneType, not a network": lambda: None,
    "an ONNX network; .*tutorial": Program,
}


@pytest.mark.parametrize("told", NO_NETWORKS)
@pytest.mark.filterwarnings("ignore")  # torch has given up some of them
def test_what_cannot_be_watched_is_told_with_its_remedy(told: str) -> None:
    with pytest.raises(UsageError, match=f"--model x: .*{told}"):
        ordinary("x", NO_NETWORKS[told]())


def run(module: nn.Module, image: Tensor) -> None:
    with torch.no_grad():
        module(image)


@pytest.mark.parametrize(
    ("module", "channels"),
    [
        (small(), 3),
        (nn.Conv2d(1, 2, 3), 1),
        (nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3)), 1),
        (nn.LazyConv2d(4, 3), 3),
        (nn.ReLU(), 3),
    ],
)
def test_the_channels_are_the_network_s(module: nn.Module, channels: int) -> None:
    assert channels_taken("x", module, (9, 9), run) == channels
    assert not any(isinstance(p, nn.UninitializedParameter) for p in module.parameters())


@pytest.mark.parametrize("channels", [2, 4, 6, 13])
def test_other_channels_are_refused_with_a_remedy(channels: int) -> None:
    with pytest.raises(UsageError, match=rf"images of {channels} channels, .*docs/tutorial\.md"):
        channels_taken("x", nn.Conv2d(channels, 2, 3), (9, 9), run)


def test_a_mistake_behind_the_image_is_no_question_of_channels() -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(5, 2, 3))
    with pytest.raises(RuntimeError, match="expected input"):
        channels_taken("x", nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(5, 2, 3)), (9, 9), run)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        channels_taken("x", nn.Sequential(nn.Flatten(), nn.Linear(5, 2)), (9, 9), run)
    with pytest.raises(UsageError, match="images of 5 channels"):
        channels_taken("x", module, (9, 9), run)


def test_a_grey_network_takes_the_mean_of_three_channels() -> None:
    module = nn.Conv2d(1, 2, 3).double()
    grey = torch.rand(2, 1, 9, 9, dtype=torch.float64, requires_grad=True)
    wanted = module(grey)
    takes_grey(module)
    three = grey.detach().expand(-1, 3, -1, -1).clone().requires_grad_()
    found = module(three)
    torch.testing.assert_close(found, wanted)
    (apart,) = torch.autograd.grad(found.sum(), three)
    (whole,) = torch.autograd.grad(wanted.sum(), grey)
    torch.testing.assert_close(apart.sum(1, keepdim=True), whole)
    torch.testing.assert_close(apart[:, 0], apart[:, 2])


STUCK = """
class Stuck(nn.Sequential):
    def train(self, mode=True):
        return super().train(True)
def net():
    torch.manual_seed(0)
    return Stuck(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
"""


def test_statistics_stay_as_they_were_whatever_train_does() -> None:
    Path("stuck.py").write_text(f"import torch\nfrom torch import nn\n{STUCK}")
    found = blueprint("stuck:net", trust_code=True)
    module, _ = load(found, None)
    assert channels_taken("stuck", module, (16, 16), lambda m, x: m(x)) == 3
    network = Network.prepare("stuck", module, Preprocessing(crop=(16, 16)))
    kept = dict(network.module.named_buffers())
    assert not kept["1.running_mean"].any()
    assert bool((kept["1.running_var"] == 1).all())
    assert int(kept["1.num_batches_tracked"]) == 0
