"""Print what an ascent costs on a pretended device: waits and launches by style and steps (JSON).

Started as ``python counted.py`` under the rules of `pretended.surroundings`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cnnvis_cli.ascent.styles import STYLES

if TYPE_CHECKING:
    from tests.gpu.ascents import stand_on, style_of
    from tests.gpu.pretended import COUNTS
else:
    from ascents import stand_on, style_of
    from pretended import COUNTS

STEPS = (64, 160)


def main() -> None:
    plain, typical = (stand_on("cuda:0", "demo", "conv2", 4, typical=yes) for yes in (False, True))
    found: dict[str, dict[str, int]] = {}
    for name in STYLES:
        stand = typical if name == "typical" else plain
        for steps in STEPS:
            before = COUNTS.copy()
            list(stand.ascend(stand.tasks(style_of(name, steps))))
            spent = COUNTS - before
            found[f"{name} {steps}"] = {
                "waits": spent["waits"] + spent["event waits"],
                "launches": spent["launches"] - spent["captured"],
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
