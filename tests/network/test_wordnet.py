"""Words for sets of ImageNet's classes."""

from __future__ import annotations

from cnnvis_cli.network.wordnet import nouns, sets_above
from cnnvis_cli.network.zoo import imagenet_names

TERRIER, SPANIEL, TABBY, AIRLINER = "n02094258", "n02102318", "n02123045", "n02690373"
CRANES = ("n02012849", "n03126707")  # the bird, and the machine


def test_every_class_of_imagenet_is_there_with_all_that_is_above_it() -> None:
    assert nouns().keys() >= imagenet_names().keys()
    roots = [id for id, noun in nouns().items() if not noun.above]
    assert [nouns()[id].word for id in roots] == ["entity"]
    assert all(above in nouns() for noun in nouns().values() for above in noun.above)


def test_a_set_has_its_most_special_word() -> None:
    found = sets_above({TERRIER, SPANIEL, TABBY, AIRLINER, "n00000000", "no id"})
    pets = {TERRIER, SPANIEL, TABBY}
    dogs = {TERRIER, SPANIEL}
    assert found == {"whole": {*pets, AIRLINER}, "carnivore": pets, "hunting dog": dogs}
    assert sets_above({TABBY}) == {}


def test_every_known_set_of_the_thousand() -> None:
    found = sets_above(imagenet_names())
    assert len(found["dog"]) == 118
    assert len(found["bird"]) == 59
    assert len(set(found.values())) == len(found) == 396
    assert len([word for word in found if word.startswith("cap (n")]) == 3
    assert sets_above(CRANES) == {"whole": set(CRANES)}
