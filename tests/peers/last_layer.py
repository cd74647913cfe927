"""Whether `cnnvis name` finds the last layer's classes as often as the network itself does.

    python tests/peers/last_layer.py RUN

RUN is that of an ImageNet classifier over photographs in folders of WordNet ids, with a sample of
all of them and names.tsv. A unit of the last layer is named rightly if its best class is its own;
an image is classified rightly if its class has the largest mean over the last map. Only the classes
of the sample count, as names of units and as answers; both are also given for all 1,000.
"""

from __future__ import annotations

import csv
from pathlib import Path

import click
import numpy as np
import torch

from cnnvis_cli.network.zoo import imagenet_names
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.dataset_images import image_reader
from cnnvis_cli.stages.common.network_loading import planned_for
from cnnvis_cli.stages.common.session import open_session
from cnnvis_cli.store.sample_file import SampleFile


@click.command(help=__doc__)
@click.argument("run", type=click.Path(path_type=Path, exists=True))
@click.option("--offset", default=0, show_default=True, help="The number of the first class.")
@click.option("--trust-code", is_flag=True, help="Load the run's own code.")
def main(run: Path, offset: int, trust_code: bool) -> None:
    plan = planned_for(Plan.make(None, {"run": str(run), "trust_code": trust_code}))
    about = SampleFile(run / "sample.h5").images()
    ids = [about.name(row).split("/")[0] for row in range(len(about.index))]
    known = list(imagenet_names())  # in the order of the classes
    truth = np.array([known.index(own) for own in ids])
    present = np.unique(truth)
    with open_session(plan, Report(quiet=True), new=False) as session:
        network, read = session.here().network, image_reader(session)
        scores = []
        with torch.inference_mode():
            for index in about.index.tolist():
                pixels = network.centre(torch.from_numpy(read(index)[None].copy()))
                scores.append(network.module(network.normalise(pixels)).flatten().numpy())
        last = network.layers[-1].alias
    found = np.stack(scores)[:, offset:]
    print(f"of {len(truth)} images of {len(present)} classes the network classifies rightly")
    print(f"  among these classes {(present[found[:, present].argmax(1)] == truth).mean():.1%}")
    print(f"  among all {(found.argmax(1) == truth).mean():.1%}")
    with (run / "names.tsv").open(encoding="utf-8") as file:
        rows = {row["unit"]: row for row in csv.DictReader(file, delimiter="\t")}
    names = imagenet_names()
    best = [rows[f"{last}/{number + offset:04d}"]["best"] for number in present.tolist()]
    right = [word.split(" (")[0] == names[known[n]] for word, n in zip(best, present, strict=True)]
    print(f"of {len(present)} units of {last} the best class is their own: {np.mean(right):.1%}")


if __name__ == "__main__":
    main()
