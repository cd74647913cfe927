"""What can be wrong with a plan and is seen at once, before any weights are fetched."""

from __future__ import annotations

from pathlib import Path

from cnnvis_cli.errors import UsageError
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


def check_layers(plan: Plan) -> None:
    """Raise `UsageError` for a layer that the network does not have, if that costs little to know.

    Once a run has begun the weights have been fetched, and your own code is loaded only once.
    """
    if not plan.layer or Run(plan.folder).read():
        return
    plan = planned_for(plan)
    if ":" not in plan.model and not (plan.weights and Path(plan.weights).exists()):
        outline(plan).choose(plan.layer)
