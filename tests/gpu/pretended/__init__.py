"""A CUDA device that is not there: CPU storage with device tags, under CUDA's rules.

Values are real, computed on the CPU. What CUDA would refuse is refused here: tensors of two
devices in one operation, ``.numpy()`` of a device's tensor, a device without an index where torch
wants one, whatever may not be captured. Launches, copies and waits are counted by line.

`tags` knows which storage is on which device and what is still on its way, `ledger` counts,
`rules` watches every operation of torch, `runtime` stands in for `torch.cuda`. A process is put
under the rules by `install`, or by ``sitecustomize`` beside this package, which does so in every
interpreter that finds it (see `surroundings`).

What it cannot show: another arithmetic (last bits, TF32, cuDNN's choices, CUDA's list of what
autocast casts), time, and streams that run in another order than that of the program.
"""

from .ledger import COUNTS, LINES, OPERATIONS, Told, told
from .runtime import install
from .surroundings import surroundings

__all__ = ["COUNTS", "LINES", "OPERATIONS", "Told", "install", "surroundings", "told"]
