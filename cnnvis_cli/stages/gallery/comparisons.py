"""The pages of `cnnvis compare` that a run has, to which its gallery leads."""

from __future__ import annotations

import html
import re
from urllib.parse import quote

from cnnvis_cli.store.inside import read_regular
from cnnvis_cli.store.run import Run


def compared_pages(run: Run) -> list[tuple[str, str]]:
    """Return the title of each page, and its address seen from the gallery."""
    found = []
    for path in sorted(run.figure("compare", "").glob("*/index.html")):
        title = re.search(rb"<title>(.*?)</title>", read_regular(path), re.DOTALL)
        name = html.unescape(title[1].decode("utf-8", "replace")) if title else path.parent.name
        found.append((name, quote(f"../figures/compare/{path.parent.name}/index.html")))
    return found
