"""Names of the types of arrays that are common to several rooms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]
Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]
Arrays = dict[str, NDArray[Any]]  # by name, as a file holds them
Units = Sequence[int]  # numbers of channels
