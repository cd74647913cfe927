"""docs/notebook.ipynb runs from its first cell to its last, and shows pictures."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cnnvis_cli

NOTEBOOK = Path(cnnvis_cli.__file__).parents[1] / "docs" / "notebook.ipynb"
MINUTES = 5  # a machine that other work keeps busy; alone it takes less than one

pytestmark = [
    pytest.mark.skipif(not NOTEBOOK.is_file(), reason="this is no checkout"),
    # Jupyter's own words about itself: where its files lie, and event loops of other systems.
    pytest.mark.filterwarnings("ignore:Jupyter is migrating its paths:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:There is no current event loop:DeprecationWarning"),
]


def cells() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return found


def test_it_is_kept_with_its_outputs_run_in_order() -> None:
    """A reader sees pictures without running it; `make figures` runs it again."""
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert len(code) > 5
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    told = list(outputs(code))
    assert not [each for each in told if each["output_type"] == "error"]
    assert not [each for each in told if each.get("name") == "stderr"]
    assert sum("image/png" in each.get("data", {}) for each in told) >= 3
    assert NOTEBOOK.stat().st_size < 1_500_000


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The cells after they have run, in an empty folder and in a kernel of their own."""
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    work, own = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("jupyter")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
            patch.setenv(name, str(own / name))  # nothing of the user's own
        where = {"metadata": {"path": str(work)}}
        nbclient.NotebookClient(notebook, timeout=60 * MINUTES, resources=where).execute()
    found: list[dict[str, Any]] = notebook.cells
    return found


def outputs(executed: list[dict[str, Any]]) -> Iterator[Any]:
    for cell in executed:
        yield from cell.get("outputs", [])


def test_it_runs_and_shows_pictures(executed: list[dict[str, Any]]) -> None:
    told = list(outputs(executed))
    assert not [each for each in told if each["output_type"] == "error"]
    assert not [each for each in told if each.get("name") == "stderr"]
    pictures = [each["data"]["image/png"] for each in told if "image/png" in each.get("data", {})]
    assert len(pictures) == 5  # two units, a preferred image, a patch, a sheet
    for picture in pictures:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB"))
        assert min(pixels.shape[:2]) > 100
        assert pixels.std() > 5
    tables = [each["data"]["text/html"] for each in told if "text/html" in each.get("data", {})]
    assert [table.count("<tr>") for table in tables] == [9, 2]


def test_it_says_what_its_text_promises(executed: list[dict[str, Any]]) -> None:
    """The preferred image exceeds all photographs, and there are three more units at the end."""
    text = "".join(each["text"] for each in outputs(executed) if each["output_type"] == "stream")
    line = next(line for line in text.splitlines() if line.startswith("optimized:"))
    preferred, strongest, ratio = (float(part.split(":")[1]) for part in line.split("  "))
    assert preferred > strongest > 0
    assert ratio == pytest.approx(preferred / strongest, abs=0.01)
    styles = next(line for line in text.splitlines() if line.startswith("{'natural': "))
    assert styles.count(",") == 5  # six units
