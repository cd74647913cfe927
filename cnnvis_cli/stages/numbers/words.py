"""`cnnvis name --clip`: a word for each unit out of any list, by soft-WPMI of CLIP-Dissect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cnnvis_cli.arrays import Doubles
from cnnvis_cli.errors import UsageError
from cnnvis_cli.measures.separation import chances
from cnnvis_cli.measures.wpmi import (
    LayerWords,
    cut_words,
    evidence_spread,
    log_evidence,
    normalisers,
    random_orders,
    word_probabilities,
)
from cnnvis_cli.network.clip import load_clip
from cnnvis_cli.nouns import Unit
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.numbers.encoding import Encoder
from cnnvis_cli.stages.numbers.table import UNNAMED
from cnnvis_cli.store.sample_file import SampleFile

WORDS_AT_ONCE = 512  # whose probabilities in all images are in memory


@dataclass(frozen=True)
class WordedUnit:
    """A unit's word; `best` is the one that fits best, whether or not chance gives it."""

    unit: str
    name: str
    score: float  # soft-WPMI
    error: float  # the bootstrap's, over its strongest images
    chance: float  # share of shuffled images whose best word fits as well
    images: int  # the strongest ones, that the word is to fit
    best: str
    clip: str  # which CLIP


def word_units(session: Session, file: SampleFile) -> tuple[list[WordedUnit], set[str]]:
    """Return a word for every unit in a sample, and the names of those that are asked for.

    Raise `UsageError` without open_clip, the model's weights or words, or for a sample of fewer
    images than twice the strongest.
    """
    plan, words = session.plan.name, _words_to_choose(session)
    fitting = _with_word(session, words)
    about = file.images()
    used = ~about.skipped
    count = int(used.sum())
    if count < 2 * plan.strongest:
        raise UsageError(
            f"{file.path}: {count} images can be used, and --strongest {plan.strongest} needs "
            "twice as many; make a larger --sample, or give fewer --strongest"
        )
    weights, say = Path(str(plan.clip_weights)), session.report.once
    model = load_clip(str(plan.clip), weights, session.device, say)
    encoder = Encoder(model.words, model.preprocessing, model.device, model.of_images)
    images = encoder.images(session, about.index[used].tolist())
    texts = model.of_words(words)
    found = {}
    for alias in file.layers():
        values = file.values(alias)[used]
        found[alias] = LayerWords.of(values, plan.strongest, plan.shuffles)
    normaliser = normalisers(images, texts, WORDS_AT_ONCE)
    orders = random_orders(count, plan.strongest, plan.shuffles, session.plan.seed)
    firsts = range(0, len(words), WORDS_AT_ONCE)
    for first in session.report.track(firsts, "name", len(words), "words", WORDS_AT_ONCE):
        some = texts[first : first + WORDS_AT_ONCE]
        probabilities = word_probabilities(images, some, normaliser)
        shuffled = log_evidence(probabilities, orders)
        for each in session.report.each(found.values()):
            each.see(first, probabilities, shuffled)
    worded: list[WordedUnit] = []
    for alias, known in found.items():
        fits = known.fits(images, texts, normaliser)
        worded += _worded(alias, known, words, (fits, plan.level), model.words)
    return worded, fitting


def _with_word(session: Session, words: Sequence[str]) -> set[str]:
    """Return the words that have that of --named in them; raise `UsageError` if none has."""
    word = (session.plan.name.named or "").lower()
    fitting = {each for each in (*words, UNNAMED) if word in each.lower()}
    if not fitting:
        raise UsageError(f"--named {word}: is in none of --words {session.plan.name.words}")
    return fitting


def _words_to_choose(session: Session) -> Sequence[str]:
    """Return the words to choose from; raise `UsageError` for a file that has none."""
    plan = session.plan.name
    for flag, value in (("--words", plan.words), ("--clip-weights", plan.clip_weights)):
        if value is None:
            raise UsageError(f"--clip {plan.clip}: give {flag} FILE as well")
    path = Path(plan.words or "")
    try:
        words = cut_words(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"--words {path}: cannot be read ({why}); one word a line") from None
    if len(words) < 2:
        raise UsageError(f"--words {path}: has {len(words)} words; give at least 2, one a line")
    return words


def _worded(
    alias: str, known: LayerWords, words: Sequence[str], made: tuple[Doubles, float], clip: str
) -> Iterator[WordedUnit]:
    fits, level = made
    columns = (known.best, evidence_spread(fits), chances(known.best, np.sort(known.by_chance)))
    for unit, word in enumerate(known.word.tolist()):
        score, error, chance = (float(column[unit]) for column in columns)
        name = words[word] if chance <= level else UNNAMED
        count = known.order.shape[1]
        yield WordedUnit(
            str(Unit(alias, unit)), name, score, error, chance, count, words[word], clip
        )
