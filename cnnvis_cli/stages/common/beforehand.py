"""What can be wrong with a plan and is seen at once, before any weights are fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cnnvis_cli.errors import UsageError
from cnnvis_cli.nouns import Unit, parse_units
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.network_loading import outline, planned_for
from cnnvis_cli.store.run import Run


def check_dataset(plan: Plan) -> None:
    """Raise `UsageError` if the plan names no dataset, or one that is not there."""
    if not plan.dataset:
        raise UsageError("which images? name the dataset: cnnvis topk FOLDER (or a list, tar, zip)")
    if plan.dataset == "demo":
        return
    try:
        Path(plan.dataset).stat()
    except FileNotFoundError:
        raise UsageError(f"dataset {plan.dataset}: there is no such folder or file") from None
    except OSError as error:
        raise UsageError(f"dataset {plan.dataset}: cannot be listed ({error.strerror})") from None


def check_images(places: Sequence[str], command: str) -> None:
    """Raise `UsageError` if a command is given no image, or one that is not there."""
    if not places:
        raise UsageError(f"which images? name files or folders: cnnvis {command} IMAGE...")
    for place in places:
        check_place(Path(place))


def check_place(place: Path) -> None:
    """Raise `UsageError` for an image or a folder of images that is not there."""
    try:
        there = place.exists()
    except OSError:  # a name that is too long for a file
        there = False
    if not there:
        raise UsageError(f"{place}: there is no such image or folder")


def check_layers(plan: Plan, units: Sequence[str] = (), others: Sequence[str] = ()) -> None:
    """Raise `UsageError` for a layer or unit that the network does not have.

    `units` such as conv5/151 and `others`, layers of further options, are looked at too. Only if
    that costs little: once a run has begun the weights have been fetched, and your own code is
    loaded only once.
    """
    if not (plan.layer or plan.units or units or others) or Run(plan.folder).read():
        return
    plan = planned_for(plan)
    if ":" in plan.model or (plan.weights and Path(plan.weights).exists()):
        return
    network = outline(plan)
    for layer in network.choose(plan.layer):
        parse_units(plan.units, layer.channels, layer.alias)
    for name in (*others, *(Unit.parse(text).layer for text in units)):
        network.layer(name)
