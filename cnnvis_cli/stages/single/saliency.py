"""`cnnvis saliency`: what in an image a class or a unit depends on, by several methods."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnvis_cli.arrays import Floats, Pixels
from cnnvis_cli.digests import digest
from cnnvis_cli.engine import arithmetic, steady
from cnnvis_cli.errors import CnnvisError, UsageError
from cnnvis_cli.figure.canvas import Canvas
from cnnvis_cli.figure.heat import CAP, capped, coloured, in_grey, over, to_largest
from cnnvis_cli.figure.saliency import MethodPicture, Subject, saliency_sheet
from cnnvis_cli.figure.sheets import Caption
from cnnvis_cli.figure.tone import TONE_RULES, toned
from cnnvis_cli.network.backward import RULES as RULES_OF_BACKWARD
from cnnvis_cli.network.saliency import (
    METHODS,
    Explainer,
    Question,
    Shown,
    Target,
    ask,
    check_way,
    count_classes,
    depends,
    enlarged,
    last_map,
    question_probabilities,
)
from cnnvis_cli.nouns import Box, Layer, Unit
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.figures.render import Figure, draw_figure, figure_files, is_there
from cnnvis_cli.stages.single.inputs import (
    InputImage,
    batch_of,
    class_name,
    find_class,
    in_batches,
    photographs,
)
from cnnvis_cli.store.run import Record
from cnnvis_cli.store.saliency import SaliencyFile

IMAGES_PER_PASS = {"cpu": 4, "cuda": 32}  # more gain little there, and cost single images
GUESSES = 5  # classes named in a figure


def saliency(session: Session) -> None:
    """Explain every image, in batches; existing results are left as they are."""
    session = session.here()
    study = SaliencyJob.of(session)
    for chosen in in_batches(photographs(session, session.plan.saliency.images), study.size):
        pending = [photograph for photograph in chosen if not study.is_done(photograph)]
        if pending:
            with session.timed("saliency"):
                study.explain(pending)
        for photograph in chosen:
            for path in study.files(photograph):
                session.report.result(str(path))


DEFAULT_METHODS = ("gradient", "guided", "deconv", "gradcam")


class Explanation(NamedTuple):
    """The results for one image: its maps by method, (h, w, 3) or (rows, columns)."""

    maps: dict[str, Floats]
    heats: dict[str, Floats]  # strengths (h, w) of each method, 0 to 1
    channel: int  # the class or unit that is explained
    value: float
    place: tuple[int, int]  # of a unit: row and column in its map
    probability: NDArray[np.float32]  # (N,) of each class; empty if there are none


@dataclass(frozen=True)
class SaliencyJob:
    """The question and methods for all images of a command."""

    session: Session
    target: Target
    methods: dict[str, Explainer]
    at: Layer | None  # Grad-CAM's layer
    classes: int

    @classmethod
    def of(cls, session: Session) -> SaliencyJob:
        """Return the study; raise `UsageError` for an invalid target, layer or method."""
        plan, network = session.plan.saliency, session.network
        classes = count_classes(network)
        target = _target(session, plan.target, classes)
        methods: dict[str, Explainer] = {
            name: METHODS[name] for name in plan.method or DEFAULT_METHODS
        }
        for name in list(methods):
            try:
                if name in RULES_OF_BACKWARD:
                    check_way(network, target, name)
            except UsageError as error:
                if plan.method:
                    raise
                session.report.once(f"{error}; left out")
                del methods[name]
        at = _map_layer(session, target) if "gradcam" in methods else None
        return cls(session, target, methods, at, classes)

    @property
    def size(self) -> int:
        """The number of images per pass."""
        device = self.session.device.type
        return self.session.plan.batch_size or IMAGES_PER_PASS.get(device, IMAGES_PER_PASS["cpu"])

    @property
    def parameters(self) -> dict[str, Record]:
        """The parameters of each method."""
        known = {name: dict(method.parameters) for name, method in self.methods.items()}
        if self.at is not None:
            known["gradcam"]["layer"] = self.at.alias
        if "smoothgrad" in known:
            known["smoothgrad"]["seed"] = self.session.plan.seed
        return known

    def name(self, image: InputImage) -> str:
        return f"{image.name}_{self.target}"

    def record(self, image: InputImage) -> Record:
        """Return what decides an image's maps."""
        return {
            "image": image.name,
            "pixels": image.digest,
            "model": self.session.network.name,
            "weights_sha256": self.session.network.digest,
            "target": str(self.target),
            "parameters": self.parameters,
        }

    def key(self, image: InputImage) -> str:
        return digest(self.record(image))

    def figure(self, image: InputImage) -> Figure:
        """Return the figure of an image, drawn from an answer."""
        record = {**self.record(image), "methods": list(self.methods)}
        return Figure("saliency", self.name(image), "", record, _undrawn)

    def numbers(self, image: InputImage) -> SaliencyFile | None:
        """Return the file of an image's maps, if the plan wants it."""
        if self.session.plan.saliency.save is None:
            return None
        return SaliencyFile(self.session.run.saliency(self.name(image)))

    def files(self, image: InputImage) -> list[Path]:
        kept = self.numbers(image)
        return [*figure_files(self.session, self.figure(image)), *([kept.path] if kept else [])]

    def is_done(self, image: InputImage) -> bool:
        kept = self.numbers(image)
        known = kept is None or kept.key() == self.key(image)
        return known and is_there(self.session, self.figure(image))

    def explain(self, images: Sequence[InputImage]) -> None:
        """Compute, draw and save one batch of images."""
        with arithmetic("float32", self.session.network.device), steady():
            answers = self.answers(images)
        for image, answer in zip(images, answers, strict=True):
            title = self.title(image, answer)
            draw = partial(self.draw, image, answer, title)
            draw_figure(self.session, replace(self.figure(image), title=title, draw=draw))
            self.keep(image, answer)

    def answers(self, images: Sequence[InputImage]) -> list[Explanation]:
        """Return the results for each image of a batch."""
        network = self.session.network
        seeds = tuple(_seed(self.session.plan.seed, image) for image in images)
        question = ask(network, self.target, batch_of(network, images), self.size, seeds)
        question = replace(question, at=self.at)
        found = {name: self._by(name, question) for name in self.methods}
        with torch.no_grad():
            values = question.value(question.images, question.all).tolist()
        guesses = question_probabilities(question).cpu().numpy() if self.classes else None
        channels, places = question.channel.tolist(), question.place.tolist()
        answers = []
        for i in range(len(images)):
            maps = {name: maps[i] for name, (maps, _) in found.items()}
            heats = {name: heats[i] for name, (_, heats) in found.items()}
            place = self._row_and_column(places[i])
            shares = np.empty(0, np.float32) if guesses is None else guesses[i]
            answers.append(Explanation(maps, heats, channels[i], values[i], place, shares))
        return answers

    def _by(self, name: str, question: Question) -> tuple[Floats, list[Floats]]:
        """Return one method's maps of a batch, and their strengths."""
        self.session.report.check_stop()
        method = self.methods[name]
        found = method.explain(question)
        return _stored_maps(found, method.shown), _strengths(found, method.shown, question)

    def _row_and_column(self, place: int) -> tuple[int, int]:
        columns = self.target.layer.map[1] if self.target.layer else 1
        return divmod(place, columns)

    def title(self, image: InputImage, answer: Explanation) -> str:
        """Return the network, image and target of a figure."""
        asked = self.called(answer)
        if self.target.layer:
            row, column = answer.place
            where = f" at row {row}, column {column}" if max(self.target.layer.map) > 1 else ""
            asked += f", {answer.value:.4g}{where}"
        return f"{self.session.network.name} · {image.name} · {asked}"

    def called(self, answer: Explanation) -> str:
        """Return the explained target, in words."""
        if self.target.layer:
            return str(Unit(self.target.layer.alias, answer.channel))
        name = class_name(self.session.network, answer.channel)
        number = f"class {answer.channel}"
        called = number if name == number else f"{name} ({number})"
        return called if self.target.channel is not None else f"predicted {called}"

    def draw(self, image: InputImage, answer: Explanation, title: str) -> Canvas:
        """Return the image, and each method's map alone and over it."""
        shown = []
        for name, raw in self._raw(answer).items():
            overlaid = over(image.pixels, answer.heats[name])
            shown.append(MethodPicture(self._titled(name, answer), raw, overlaid))
        scale = self.session.plan.figure.scale or 1
        subject = Subject(image.pixels, self._guesses(answer), self._seen(answer))
        caption = Caption(title, self.note(), self.session.plan.figure.column)
        return saliency_sheet(subject, shown, caption, scale)

    def _raw(self, answer: Explanation) -> dict[str, Pixels]:
        """Return each method's map in its tone."""
        plan, mean = self.session.plan.figure, self.session.network.preprocessing.mean
        signed = [name for name, method in self.methods.items() if method.shown == "signed"]
        grounds: dict[str, Pixels] = {}
        if signed:
            tiles = np.stack([answer.maps[name] for name in signed])
            grounds = dict(zip(signed, toned(tiles[None], plan.tone, mean)[0], strict=True))
        drawn = {"magnitude": in_grey, "map": coloured}
        raw = {}
        for name, method in self.methods.items():
            known = name in grounds
            raw[name] = grounds[name] if known else drawn[method.shown](answer.heats[name])
        return raw

    def _titled(self, name: str, answer: Explanation) -> str:
        title = self.methods[name].title
        if name == "gradcam" and self.at is not None:
            title += f" {self.at.alias}"
        return title if answer.maps[name].any() else f"{title}: 0 everywhere"

    def _guesses(self, answer: Explanation) -> tuple[tuple[str, float], ...]:
        """Return the most probable classes, by name."""
        order = np.argsort(-answer.probability, kind="stable")[:GUESSES].tolist()
        network = self.session.network
        return tuple((class_name(network, i), float(answer.probability[i])) for i in order)

    def _seen(self, answer: Explanation) -> Box | None:
        """Return the field of a unit in the input, unless it is all of it."""
        network = self.session.network
        if self.target.layer is None:
            return None
        box = self.target.layer.local.box(*answer.place).clip(network.size)
        return None if box == Box.whole(network.size) else box

    def note(self) -> str:
        """Return how to read the figure: what each method is, and how it is drawn."""
        rules = {"signed": f"Tone: {TONE_RULES[self.session.plan.figure.tone]}.", **LEGENDS}
        shown, said = set(), []
        for method in self.methods.values():
            title = method.title[0].upper() + method.title[1:]
            said.append(f"{title}: {method.says}.")
            shown.add(method.shown)
        return " ".join([*said, *(rules[kind] for kind in rules if kind in shown), COLOURS])

    def keep(self, image: InputImage, answer: Explanation) -> None:
        """Write the maps as numbers, if the plan wants them."""
        file = self.numbers(image)
        if file is None:
            return
        record = {
            **self.record(image),
            "key": self.key(image),
            "channel": answer.channel,
            "value": answer.value,
            "place": answer.place,
        }
        file.publish(
            record,
            {"image": image.pixels, "probability": answer.probability, **answer.maps},
        )


LEGENDS: dict[Shown, str] = {
    "magnitude": f"Grey: the largest of the three colours' magnitudes, white from the {CAP}th "
    "percentile of those that are not 0.",
    "map": "Grad-CAM: black at 0, pale yellow at its largest.",
}
COLOURS = (
    "Over the image: colour and its opacity are the strength, of signed maps too by the largest of "
    f"the three magnitudes, full from the {CAP}th percentile; Grad-CAM's at its largest."
)


def _undrawn() -> Canvas:
    raise CnnvisError("a figure has to be explained before it is drawn")


def _target(session: Session, text: str | None, classes: int) -> Target:
    """Return the target of ``--target``: a class or a unit; raise `UsageError` if invalid."""
    network = session.network
    if text is None:
        if not classes:
            raise UsageError(
                f"{network.name} does not give one number per class; ask about a unit, like "
                f"--target {Unit(network.layers[-1].alias, 0)}"
            )
        return Target()
    if "/" in text and text.casefold() not in {name.casefold() for name in network.classes}:
        unit = Unit.parse(text)
        layer = network.layer(unit.layer)
        if unit.channel >= layer.channels:
            raise UsageError(
                f"--target {text}: {layer.alias} has no unit {unit.channel}; it has 0 to "
                f"{layer.channels - 1}"
            )
        return Target(layer, unit.channel)
    return Target(None, find_class(network, classes, text))


def _map_layer(session: Session, target: Target) -> Layer:
    """Return the layer of ``--at``, or the last with a map; raise `UsageError` if invalid."""
    network, asked = session.network, session.plan.saliency.at
    if asked is None:
        return last_map(network, target)
    layer = network.layer(asked)
    if layer.kind == "fc" or not depends(network, target, layer):
        raise UsageError(
            f"--at {asked}: {target.spoken} is not computed from a map of {layer.alias}; choose a "
            f"convolution before it, such as {last_map(network, target).alias}"
        )
    return layer


def _seed(seed: int, image: InputImage) -> int:
    """Return the seed of random numbers for an image, from its pixels alone."""
    drawn = hashlib.sha256(f"{seed} {image.digest}".encode()).digest()
    return int.from_bytes(drawn[:8], "big") >> 1


def _stored_maps(found: Tensor, shown: Shown) -> Floats:
    """Return maps as they are stored: (B, h, w, 3), or (B, rows, columns)."""
    ordered = found if shown == "map" else found.permute(0, 2, 3, 1)
    array: NDArray[Any] = ordered.cpu().float().contiguous().numpy()
    return array


def _strengths(found: Tensor, shown: Shown, question: Question) -> list[Floats]:
    """Return the strength of each pixel, 0 to 1: (h, w) per image."""
    if shown == "map":
        return [to_largest(m) for m in enlarged(found, question.network.size).numpy()]
    return [capped(m) for m in found.abs().amax(1).cpu().numpy()]
