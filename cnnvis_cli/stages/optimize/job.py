"""The ascents of one layer in one style: what is asked for, and what is there."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np

from cnnvis_cli.ascent.climb import Outcome
from cnnvis_cli.ascent.steps import Constant
from cnnvis_cli.ascent.styles import Style
from cnnvis_cli.ascent.typical import TypicalParameterization
from cnnvis_cli.engine import resolve_precision
from cnnvis_cli.errors import UsageError
from cnnvis_cli.measures.preference import Preference
from cnnvis_cli.nouns import Layer
from cnnvis_cli.stages.common.layer_job import LayerJob
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.optimize.preference import preference_of
from cnnvis_cli.stages.optimize.setup import LayerSetup, setup_of
from cnnvis_cli.stages.optimize.start import start_record
from cnnvis_cli.stages.optimize.styles import variant
from cnnvis_cli.stages.optimize.typical import with_statistics
from cnnvis_cli.store.optimized import OptimizedFile
from cnnvis_cli.store.room import Room, images_room
from cnnvis_cli.store.run import Record, differences

NAMED = 8  # units in a warning


@dataclass(frozen=True, eq=False)
class LayerOptimization(LayerJob):
    """The ascents of one layer in one style: what is asked for, and what is there."""

    kind: ClassVar[str] = "optimized"
    setup: LayerSetup
    style: Style

    @classmethod
    def of(cls, session: Session, layer: Layer, style: Style) -> LayerOptimization:
        setup = setup_of(session, layer)
        style = with_statistics(session, setup, style)
        kept = style.image
        if isinstance(kept, TypicalParameterization) and kept.below:
            setup = replace(setup, typical=kept)
        return cls(session, layer, setup, style).going_on()

    @property
    def file(self) -> OptimizedFile:
        return OptimizedFile(self.session.run.optimized(self.layer.alias))

    @property
    def group(self) -> str:
        """Return where the file keeps it."""
        return self.style.name + variant(self.session.plan.optimize)

    @property
    def record(self) -> Record:
        """Return what decides a unit's pictures; a style that was made otherwise is refused."""
        settings = self.session.plan.optimize
        return {
            **self.style.parameters(),
            "step": settings.step,
            "policy": self.style.parameters()["step"],
            "seed": self.session.plan.seed,
            "runs": settings.runs,
            "batch_size": self.setup.size,
            "canvas": list(self.setup.box.size),
            "objective": "mean" if settings.mean else "centre",
            "softmax": settings.softmax,
            "minimise": settings.minimise,
            "diversity": settings.diversity,
            "start": start_record(settings.start),
            "precision": resolve_precision(settings.precision, self.session.device),
            "device": self.session.device.type,
            "history": settings.history,
            **({"majority": True} if settings.majority else {}),
            **({"targets": list(self.setup.names)} if self.setup.names else {}),
        }

    @property
    def kept_record(self) -> Record:
        return asked_for(self.record)

    @property
    def asked(self) -> tuple[int, ...]:
        """Return the targets that the plan asks for."""
        if self.setup.names:
            return tuple(range(self.setup.targets))
        return super().asked

    @property
    def done(self) -> list[int]:
        """Return the targets in the file; raise `UsageError` if it is of another plan."""
        held = self.file.styles().get(self.group)
        if held is None:
            return []
        if asked_for(held) != asked_for(self.record):
            raise UsageError(
                f"{self.file.path} holds style {self.group} of another plan: "
                f"{differences(asked_for(held), asked_for(self.record))}; choose another --run"
            )
        units: list[int] = self.file.units(self.group).tolist()
        return units

    @property
    def title(self) -> str:
        return f"{self.layer.alias} style {self.group}"

    @property
    def room(self) -> Room:
        """Return what the images that are not there yet will take."""
        settings = self.session.plan.optimize
        percentiles = (getattr(part, "percentile", 0.0) for part in self.style.regularizers)
        units = len(set(self.asked) - set(self.done))
        images = units * settings.runs
        images *= 2 if settings.majority else 1
        if self.style.accentuates:
            images += -(-units // 2)  # the photographs, of half as many bytes
        history = -(-self.style.iterations // settings.history)
        return images_room(images, self.setup.box.size, max(percentiles, default=0.0), history)

    def going_on(self) -> LayerOptimization:
        """Return the same with the rate that an earlier version found for the units in the file."""
        held = self.file.styles().get(self.group, {})
        if held.get("step") != "calibrated" or "rate" not in held.get("policy", {}):
            return self
        return replace(self, style=self.style.with_step(Constant(held["policy"]["rate"])))

    @cached_property
    def preference(self) -> Preference | None:
        """How the finished images compare with the run's strongest photographs."""
        return preference_of(self.session.run, self.layer.alias, self.group)

    def warn(self) -> None:
        """Name the units whose images are not what they prefer."""
        below = self.preference.below if self.preference is not None else []
        if below:
            named = ", ".join(map(str, below[:NAMED])) + (", ..." if len(below) > NAMED else "")
            self.session.report.warn(
                f"{self.title}: {len(below)} units answer more to an image of the dataset than to "
                f"their optimized one ({named}); more --iterations, more --runs or another --style "
                "may do better"
            )

    def clear(self) -> None:
        """Remove what a process that was killed has left of pieces that are published."""
        self.parts.clear()

    def summary(self) -> str:
        """Return what was found, and why some units have no picture."""
        outcomes = self.file.read(self.group, "outcome")
        counts = Counter(outcomes.ravel().tolist())
        text = (
            f"{self.file.path}: style {self.group}, {len(outcomes)} units; "
            f"{counts[Outcome.LARGEST]} of {outcomes.size} images make their unit "
            "the largest of its layer"
        )
        if self.session.plan.optimize.minimise:
            text = text.replace("largest", "lowest")
        if self.style.accentuates:
            text += f"; {self._accentuated()}"
        if self.preference is not None:
            text += f"; {self.preference.summary()}"
        if counts[Outcome.NO_GRADIENT]:
            text += (
                f"; {counts[Outcome.NO_GRADIENT]} are left without a picture because no gradient "
                "reaches the image: nothing that feeds the unit is on"
            )
        return text

    def _accentuated(self) -> str:
        """Return in words how far the values have risen."""
        start, best = (self.file.read(self.group, name) for name in ("start", "activation"))
        return (
            f"the median value goes from {np.median(start):.3g} in the photograph to "
            f"{np.median(best):.3g}"
        )


def asked_for(record: Record) -> Record:
    """Return a record without the step where the plan leaves that to cnnvis."""
    asked = dict(record)
    if asked.get("step") == "calibrated":
        asked.pop("policy", None)
    return asked
