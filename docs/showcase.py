"""A web site of a real network and a folder of photographs, ready for any web server.

    make showcase DATASET=photographs WEIGHTS=weights.safetensors

runs `python docs/showcase.py DATASET --weights WEIGHTS`, which does topk, optimize, project,
name, montage and gallery, and lays their pages into RUN/site: index.html, the gallery, figures,
and the table of all units. Called again, it goes on where it stopped. The page says whose the
photographs are: --licence names the file of a licence; without one it warns.
"""

from __future__ import annotations

import argparse
import csv
import html
import shutil
import subprocess
import sys
from pathlib import Path

NO_LICENCE = (
    "The licence of these photographs and of these weights has not been stated. Before you "
    "publish this page, make sure that it allows it, and give it with --licence FILE."
)
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;"
    "color:#222;background:#fff}img{max-width:100%;height:auto;border:0}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:right}"
    "td:first-child,th:first-child{text-align:left}.licence{border-left:4px solid #c60;"
    "padding:.5rem 1rem;background:#fff6ec}"
)


def cnnvis(*words: str, needed: bool = True) -> None:
    """Run a command; end with its exit code if it fails and is `needed`."""
    print("cnnvis", *words, flush=True)
    code = subprocess.run([sys.executable, "-m", "cnnvis_cli", *words], check=False).returncode
    if needed and code not in (0, 3):  # 3: done, but many images were unreadable
        sys.exit(code)


def made(given: argparse.Namespace) -> None:
    """Do all stages; each returns at once if it is done."""
    run = ("--run", given.run)
    network = ("--model", given.model, "--weights", given.weights)
    trust = ("--trust-code",) if given.trust_code else ()
    layers = tuple(word for name in given.layer for word in ("--layer", name))
    units = ("--units", given.units) if given.units else ()
    steps = ("--iterations", given.iterations) if given.iterations else ()
    cnnvis("topk", given.dataset, *network, *run, *trust, "--sample", "10000")
    cnnvis("optimize", *run, *trust, *layers, *units, *steps)
    cnnvis("project", *run, *trust, *layers, *units)
    cnnvis("name", *run, *trust, *layers, *units, needed=False)  # not without classes
    cnnvis("montage", "optimized", "top", *run, *layers, *units)
    cnnvis("gallery", *run, *layers, *units, "--title", given.title or given.model)


def named(table: Path) -> list[tuple[str, int, int]]:
    """Return of each layer in names.tsv: its alias, its units, and how many have a name."""
    counts: dict[str, list[int]] = {}
    if table.is_file():
        with table.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                layer = row["unit"].rpartition("/")[0]
                own = counts.setdefault(layer, [0, 0])
                own[0] += 1
                own[1] += row["name"] != "unnamed"
    return [(layer, units, names) for layer, (units, names) in counts.items()]


def page(given: argparse.Namespace, figures: list[str], licence: str) -> str:
    """Return the first page."""
    title = html.escape(given.title or f"What {given.model} has learned")
    rows = "".join(
        f"<tr><td>{html.escape(layer)}</td><td>{units}</td><td>{names}</td></tr>"
        for layer, units, names in named(Path(given.run) / "names.tsv")
    )
    pictures = "".join(
        f'<h3>{html.escape(Path(name).stem)}</h3><a href="{html.escape(name)}">'
        f'<img loading="lazy" src="{html.escape(name)}" alt="{html.escape(name)}"></a>'
        for name in figures
    )
    table = ""
    if rows:
        table = f"<h2>Layers</h2><table><tr><th>layer<th>units<th>with a name</tr>{rows}</table>"
        table += '<p><a href="names.tsv">The table of all units</a></p>'
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        '<link rel="icon" href="gallery/icon.svg">'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        f"<h1>{title}</h1>"
        '<p><a href="gallery/index.html">Browse every unit</a></p>'
        f'<p class="licence">{html.escape(licence)}</p>'
        f"<h2>Images that the units prefer</h2>{pictures}"
        f"{table}<p>Made with cnnvis. Preferred images are computed from the network; patches "
        "are cut from the photographs.</p></html>\n"
    )


def laid_out(given: argparse.Namespace) -> Path:
    """Copy what the page shows into RUN/site; return its first page."""
    run, site = Path(given.run), Path(given.run) / "site"
    licence = Path(given.licence).read_text(encoding="utf-8") if given.licence else NO_LICENCE
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(run / "gallery", site / "gallery")
    shutil.copytree(run / "figures", site / "figures")
    if (run / "names.tsv").is_file():
        shutil.copyfile(run / "names.tsv", site / "names.tsv")
    figures = sorted((site / "figures/optimized").glob("*.png"), key=_in_order)
    names = [str(path.relative_to(site)) for path in figures]
    (site / "index.html").write_text(page(given, names, licence), encoding="utf-8")
    (site / "LICENCE.txt").write_text(licence + "\n", encoding="utf-8")
    return site / "index.html"


def _in_order(path: Path) -> tuple[int, str]:
    """Sort conv10 behind conv9."""
    digits = "".join(filter(str.isdigit, path.stem))
    return int(digits or 0), path.stem


def asked() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--model", default="squeezenet1_0")
    parser.add_argument("--run", default="outputs/showcase")
    parser.add_argument("--layer", action="append", default=[])
    parser.add_argument("--units", default="")
    parser.add_argument("--iterations", default="")
    parser.add_argument("--title", default="")
    parser.add_argument("--licence", default="")
    parser.add_argument("--trust-code", action="store_true")
    given = parser.parse_args()
    if given.licence and not Path(given.licence).is_file():
        sys.exit(f"--licence {given.licence}: there is no such file")
    return given


def main() -> None:
    given = asked()
    made(given)
    print(f"{laid_out(given)}: copy its folder to any web server")


if __name__ == "__main__":
    main()
