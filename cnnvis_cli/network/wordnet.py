"""Sets of ImageNet's classes that have a word of their own, like dog or vehicle: WordNet's."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from importlib.resources import files
from typing import NamedTuple


class Noun(NamedTuple):
    """One of WordNet's nouns: its first word, and the ids of its hypernyms."""

    word: str
    above: tuple[str, ...]


@cache
def nouns() -> dict[str, Noun]:
    """Return ILSVRC 2012's 1000 classes and the nouns above them, by WordNet 3.0's id."""
    text = (files("cnnvis_cli.network") / "wordnet_tree.txt").read_text(encoding="utf-8")
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            id, above, word = line.split("\t")
            found[id] = Noun(word, tuple(above.split(",")) if above else ())
    return found


def sets_above(ids: Collection[str]) -> dict[str, frozenset[str]]:
    """Return the nouns that hold several of these classes, by word, with those that they hold.

    Of nouns that hold the same ones the most special has its say. The id stands behind a word that
    several nouns have, like ``crane``. Unknown ids are in no set.
    """
    below: dict[str, set[str]] = {}
    for id in ids:
        for each in _all_above(id):
            below.setdefault(each, set()).add(id)
    special: dict[frozenset[str], str] = {}
    for noun in sorted(below, key=lambda noun: (len(_all_above(noun)), noun)):
        if len(below[noun]) > 1:
            special[frozenset(below[noun])] = noun
    words = [nouns()[noun].word for noun in special.values()]
    found = {}
    for held, noun in special.items():
        word = nouns()[noun].word
        found[word if words.count(word) == 1 else f"{word} ({noun})"] = held
    return found


@cache
def _all_above(id: str) -> frozenset[str]:
    """Return the ids of all nouns above one, near and far."""
    found: set[str] = set()
    for each in nouns()[id].above if id in nouns() else ():
        found |= {each} | _all_above(each)
    return frozenset(found)
