"""Is an image that a unit is said to prefer preferred: to the best of the photographs?"""

from __future__ import annotations

from cnnvis_cli.ascent.climb import Outcome
from cnnvis_cli.measures.preference import Preference
from cnnvis_cli.store.optimized import OptimizedFile
from cnnvis_cli.store.run import Run
from cnnvis_cli.store.topk_file import TopKFile


def preference_of(run: Run, alias: str, group: str) -> Preference | None:
    """Return how a layer's images of a style compare with the images of the run's top-k.

    None if the run has no top-k of the layer, or if the style maximises something else than the
    value that top-k ranks by.
    """
    file, top = OptimizedFile(run.optimized(alias)), TopKFile(run.topk)
    made = file.styles().get(group)
    if made is None or not run.topk.exists() or alias not in top.layers():
        return None
    plain = made.get("objective", "centre") == "centre" and not made.get("targets")
    plain = plain and made.get("image", {}).get("kind") != "Accent"  # stays near a photograph
    if not plain or made.get("softmax") or made.get("minimise"):
        return None
    units = file.units(group)
    best = top.layer(alias).places.activation[units, 0]
    values = file.read(group, "activation")
    live = (file.read(group, "outcome") != int(Outcome.NO_GRADIENT)).any(axis=1)
    return Preference(units, values.max(axis=1), best, live, top.summary()[0])
