"""The names of modules above small pictures."""

from __future__ import annotations

from itertools import pairwise

from cnnvis_cli.figure.activations import path_end
from cnnvis_cli.figure.canvas import text_size


def test_a_path_keeps_its_end() -> None:
    """As much of it as fits, cut where a part begins."""
    name = "features.3.expand1x1_activation"
    assert path_end(name, 300) == name
    ends = ["...3.expand1x1_activation", "...expand1x1_activation", "...activation", ""]
    for end, less in pairwise(ends):
        assert path_end(name, text_size(end, 11)[0]) == end
        assert path_end(name, text_size(end, 11)[0] - 1) == less
    assert path_end("conv5", 1) == ""
