"""A trained network on real photographs, where a checkout has them beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision import models, transforms

from cnnvis_cli.dataset.manifest import Manifest
from cnnvis_cli.nouns import Box
from cnnvis_cli.report import Report
from cnnvis_cli.settings import OptimizePlan, Plan
from cnnvis_cli.stages.common.session import open_session
from cnnvis_cli.stages.optimize.stage import optimize
from cnnvis_cli.stages.topk.stage import topk
from cnnvis_cli.store.optimized import OptimizedFile
from cnnvis_cli.store.topk_file import TopKFile

DATA = Path(__file__).parents[3] / "shared" / "data"
WEIGHTS = DATA / "squeezenet1_0-imagenet.safetensors"
IMAGES = DATA / "imagenet-sample"
K = 9
CLOSE = 1e-4  # relative: values nearer than this may change places

pytestmark = pytest.mark.skipif(
    not WEIGHTS.is_file(), reason="the SqueezeNet weights and ImageNet images are not beside this"
)


def every_maximum() -> dict[str, tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Run each image alone through torchvision: maxima and flat places, (N, C) per module."""
    from PIL import Image
    from safetensors.torch import load_file

    module = models.squeezenet1_0()
    module.load_state_dict(load_file(WEIGHTS))
    module.eval()
    prepare = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, child in module.named_modules():
        if isinstance(child, nn.ReLU):
            child.inplace = False
        if isinstance(child, nn.Conv2d):
            rows: list[tuple[Tensor, Tensor]] = []
            found[name] = rows

            def keep(
                _m: nn.Module, _i: object, out: Tensor, rows: list[tuple[Tensor, Tensor]] = rows
            ) -> None:
                value, place = out[0].flatten(1).max(dim=1)
                rows.append((value, place))

            child.register_forward_hook(keep)
    with torch.no_grad():
        manifest = Manifest.scan(IMAGES)
        for path in map(manifest.path, range(len(manifest))):
            module(prepare(Image.open(IMAGES / path).convert("RGB"))[None])
    return {
        name: (
            torch.stack([value for value, _ in rows]).numpy(),
            torch.stack([place for _, place in rows]).numpy(),
        )
        for name, rows in found.items()
    }


def test_topk_is_what_brute_force_finds(tmp_path: Path) -> None:
    plan = Plan(
        model="squeezenet1_0", weights=str(WEIGHTS), dataset=str(IMAGES), run=str(tmp_path / "run")
    )
    with open_session(plan, Report(quiet=True)) as session:
        topk(session)
        layers = session.network.layers
    assert len(layers) == 26
    expected = every_maximum()
    for layer in layers:
        value, place = expected[layer.module]
        stored = TopKFile(tmp_path / "run" / "topk.h5").layer(layer.alias).places
        order = np.argsort(-value, axis=0, kind="stable")[: K + 1]
        ranked = np.take_along_axis(value, order, 0).T  # (C, k + 1)
        np.testing.assert_allclose(stored.activation, ranked[:, :K], rtol=CLOSE, atol=1e-4)
        gap = np.abs(np.diff(ranked, axis=1)) > CLOSE * np.abs(ranked[:, :-1])
        clear = gap & np.concatenate([np.ones((len(gap), 1), bool), gap[:, :-1]], axis=1)
        assert clear.mean() > 0.8, "too many near ties for the comparison to mean much"
        np.testing.assert_array_equal(stored.image[clear], order[:K].T[clear])
        rows, columns = divmod(np.take_along_axis(place, order[:K], 0).T, layer.map[1])
        np.testing.assert_array_equal(stored.row[clear], rows[clear])
        np.testing.assert_array_equal(stored.column[clear], columns[clear])


def test_a_stored_optimized_image_gives_its_activation(tmp_path: Path) -> None:
    """In every layer, read back and put where it belongs, through torchvision's own code."""
    from safetensors.torch import load_file

    settings = OptimizePlan(style=("3",), iterations=12, step="1")
    plan = Plan(
        model="squeezenet1_0",
        weights=str(WEIGHTS),
        run=str(tmp_path / "run"),
        units="3,11",
        batch_size=2,
        optimize=settings,
    )
    with open_session(plan, Report(quiet=True)) as session:
        optimize(session)
        layers = session.network.layers
    module = models.squeezenet1_0().eval()
    module.load_state_dict(load_file(WEIGHTS))
    for child in module.modules():
        if isinstance(child, nn.ReLU):
            child.inplace = False
    std = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    for layer in layers:
        file = OptimizedFile(tmp_path / "run" / "optimized" / f"{layer.alias}.h5")
        pictures = torch.from_numpy(file.read("3", "image")[:, 0].astype(np.float32))
        whole = torch.zeros(2, 3, 224, 224)
        box = layer.field.box(*layer.centre)
        if not box.inside((224, 224)):
            box = Box.whole((224, 224))
        whole[:, :, box.top : box.bottom, box.left : box.right] = pictures.permute(0, 3, 1, 2)
        seen: list[Tensor] = []
        handle = module.get_submodule(layer.module).register_forward_hook(
            lambda _m, _i, output, seen=seen: seen.append(output)
        )
        with torch.no_grad():
            module(whole / std)
        handle.remove()
        row, column = layer.centre
        values = seen[0][[0, 1], [3, 11], row, column]
        np.testing.assert_allclose(file.read("3", "activation")[:, 0], values, rtol=0.01)
