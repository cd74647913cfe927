"""soft-WPMI of CLIP-Dissect: which word fits the images that activate a unit most.

Oikarinen and Weng, ICLR 2023 (arXiv:2204.10965), with the constants of their code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from cnnvis_cli.arrays import Doubles, Floats, Int64s

SHARPNESS = 10.0  # a: factor of the similarities in the softmax over words
PRIOR_WEIGHT = 1.0  # lambda
FIRST_MEMBERSHIP, LAST_MEMBERSHIP = 0.998, 0.97  # p(x in B) of the strongest image, and the end
LEAST_PROBABILITY = 1e-7
FACTORS_AT_ONCE = 100  # of at least 0.002: their product is above the smallest double


def strongest_first(values: Floats, count: int) -> Int64s:
    """Return the images of the largest values of each unit: (N, C) -> (C, count).

    NaN is below all numbers; equal values are in the order of the images.
    """
    known = np.where(np.isnan(values), -np.inf, values)
    found: Int64s = np.argsort(-known, axis=0, kind="stable")[:count].T
    return found


def memberships(count: int) -> Doubles:
    """Return how surely each of so many strongest images is one of the unit's: (count,)."""
    span = FIRST_MEMBERSHIP - LAST_MEMBERSHIP
    return np.asarray(FIRST_MEMBERSHIP - np.arange(count) / count * span)


def normalisers(images: Floats, words: Floats, block: int) -> Doubles:
    """Return the logarithm of each image's sum over words of exp(a similarity): (N,).

    `images` (N, F) and `words` (M, F) have length 1.
    """
    found = np.full(len(images), -np.inf)
    for first in range(0, len(words), block):
        similarity = SHARPNESS * (images @ words[first : first + block].T).astype(np.float64)
        found = np.logaddexp(found, logsumexp(similarity, axis=1))
    return found


def word_probabilities(images: Floats, words: Floats, normaliser: Doubles) -> Doubles:
    """Return p(word | image) of some of the words, (N, W), by the softmax over all of them."""
    similarity = SHARPNESS * (images @ words.T).astype(np.float64)
    return np.asarray(np.exp(similarity - normaliser[:, None]))


def log_evidence(probabilities: Doubles, order: Int64s) -> Doubles:
    """Return log E[p(word | B)] of units with these strongest images: (N, W), (C, K) -> (C, W).

    It is the sum over images of log(1 + p(x in B) (p(word | x) - 1) + 1e-7).
    """
    found = np.zeros((len(order), probabilities.shape[1]))
    product = np.ones_like(found)
    for rank, membership in enumerate(memberships(order.shape[1]).tolist(), 1):
        product *= membership * probabilities[order[:, rank - 1]] + (
            1 - membership + LEAST_PROBABILITY
        )
        if rank % FACTORS_AT_ONCE == 0:
            found += np.log(product)
            product.fill(1)
    return found + np.log(product)


def log_prior(evidence: Doubles) -> Doubles:
    """Return log p(word), the mean of E[p(word | B)] over a layer's units: (C, W) -> (W,)."""
    return np.asarray(logsumexp(evidence, axis=0) - np.log(len(evidence)))


def soft_wpmi(evidence: Doubles, prior: Doubles) -> Doubles:
    """Return the soft-WPMI of units and words, (C, W)."""
    return evidence - PRIOR_WEIGHT * prior


def evidence_spread(probabilities: Doubles) -> Doubles:
    """Return the error of log E of each unit's word by resampling its images (the bootstrap).

    From p(word | x) of its strongest images, (C, K) -> (C,), in the limit of many resamples.
    """
    count = probabilities.shape[1]
    sure = memberships(count)
    terms = np.log(1 + sure * (probabilities - 1) + LEAST_PROBABILITY)
    return np.asarray(count**0.5 * terms.std(axis=1))


def random_orders(images: int, count: int, orders: int, seed: int) -> Int64s:
    """Return the first images of some random orders of all: (orders, count)."""
    generator = np.random.default_rng(seed)
    return np.stack([generator.permutation(images)[:count] for _ in range(orders)])


def cut_words(text: str) -> Sequence[str]:
    """Return the words of a text, one a line, each once, without empty lines."""
    return list(dict.fromkeys(filter(None, map(str.strip, text.splitlines()))))


@dataclass
class LayerWords:
    """The best word so far of each of a layer's units, and of each random order of the images."""

    order: Int64s  # (C, K) strongest images
    best: Doubles  # (C,)
    word: Int64s  # (C,) its number
    by_chance: Doubles  # (S,)

    @classmethod
    def of(cls, values: Floats, strongest: int, shuffles: int) -> LayerWords:
        order, nothing = strongest_first(values, strongest), np.full(values.shape[1], -np.inf)
        return cls(order, nothing, np.zeros(len(nothing), np.int64), np.full(shuffles, -np.inf))

    def see(self, first: int, probabilities: Doubles, shuffled: Doubles) -> None:
        """Take some words, from number `first` on, into account.

        `probabilities` (N, W) are those of the images, `shuffled` (S, W) the evidence of random
        orders.
        """
        evidence = log_evidence(probabilities, self.order)
        prior = log_prior(evidence)
        found = soft_wpmi(evidence, prior)
        chosen, largest = found.argmax(axis=1), found.max(axis=1)
        better = largest > self.best
        self.word = np.where(better, first + chosen, self.word)
        self.best = np.where(better, largest, self.best)
        self.by_chance = np.maximum(self.by_chance, soft_wpmi(shuffled, prior).max(axis=1))

    def fits(self, images: Floats, words: Floats, normaliser: Doubles) -> Doubles:
        """Return p(word | image) of each unit's best word and strongest images: (C, K)."""
        found = np.empty(self.order.shape)
        for unit, (rows, word) in enumerate(zip(self.order, self.word.tolist(), strict=True)):
            some = words[word : word + 1]
            found[unit] = word_probabilities(images[rows], some, normaliser[rows])[:, 0]
        return found
