"""What `cnnvis verify` has found: what is proven, how, what is not, and what is wrong."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from cnnvis_cli.errors import CnnvisError, Stopped, StorageError
from cnnvis_cli.stages.common.lists import aligned

MOST = 20  # problems of one kind in one place that are named; the others are counted


WHOLE = 1 << 30  # bytes of a group's pictures up to which all are looked at
BLOCK = 1 << 25  # bytes of pictures that are read together


def blocks_of(count: int, each: int) -> Iterator[slice]:
    """Yield blocks of rows of `each` bytes to look at: all, or evenly spread ones of very many."""
    length = max(1, BLOCK // max(1, each))
    blocks = -(-count // length)
    step = max(1, -(-blocks * length * each // WHOLE))
    for first in range(0, blocks, step):
        yield slice(first * length, min(count, (first + 1) * length))


class Unread(Exception):
    """An image cannot be had; that has been said already."""


@dataclass
class Proof:
    """How many things of a kind were proven, and how.

    `stored` agree with all else that is stored, `recomputed` came out again from their sources;
    `unproven` were not recomputed, for the reasons `why`.
    """

    stored: int = 0
    recomputed: int = 0
    unproven: int = 0
    why: list[str] = field(default_factory=list)


@dataclass
class Findings:
    """What was checked, and what is wrong with it."""

    proofs: dict[str, Proof] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)  # of the system: they may pass
    bad: set[Path] = field(default_factory=set)  # files whose content means nothing

    def of(self, kind: str) -> Proof:
        return self.proofs.setdefault(kind, Proof())

    def stored(self, kind: str, count: int, problems: Iterable[str] = ()) -> None:
        """Count things that were held against what else is stored; record the problems."""
        self.of(kind).stored += count
        self._record(kind, problems)

    def recomputed(self, kind: str, count: int, problems: Iterable[str] = ()) -> None:
        """Count things that were computed again; record the problems."""
        self.of(kind).recomputed += count
        self._record(kind, problems)

    def leave(self, kind: str, count: int, why: str) -> None:
        """Count things that are not proven, and say why."""
        if count:
            proof = self.of(kind)
            proof.unproven += count
            if why not in proof.why:
                proof.why.append(why)

    def spoil(self, path: Path, kind: str, problem: str) -> None:
        """Record what makes a file's content meaningless."""
        self.bad.add(path)
        self._record(kind, [problem])

    def _record(self, kind: str, problems: Iterable[str]) -> None:
        found = iter(problems)
        self.wrong += [text for text in islice(found, MOST) if text not in self.wrong]
        more = sum(1 for _ in found)
        if more:
            self.wrong.append(f"{kind}: {more} more like these")

    @contextmanager
    def guarded(self, kind: str, path: Path | None = None) -> Iterator[None]:
        """Turn any failure of one check into a finding; the others continue.

        A failure of the system is a fault, which says nothing of the results.
        """
        try:
            yield
        except Stopped:
            raise
        except Unread:
            self.leave(kind, 1, "an image that cannot be had")
        except StorageError as error:
            self.faults.append(str(error))
            self.leave(kind, 1, "a fault of the system")
        except CnnvisError as error:
            self._failed(kind, str(error), path)
        except Exception as error:  # from whatever is stored there
            where = traceback.extract_tb(error.__traceback__)[-1].name
            what = f"{path or kind}: cannot be computed again ({error or where})"
            self._failed(kind, " ".join(what.split()), path)

    def _failed(self, kind: str, problem: str, path: Path | None) -> None:
        self._record(kind, [problem])
        if path is not None:
            self.bad.add(path)

    def record(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        proofs = {kind: vars(proof) for kind, proof in self.proofs.items()}
        return {"checked": proofs, "wrong": self.wrong, "faults": self.faults}

    def lines(self) -> Iterator[str]:
        """Yield the lines of text: one table, then what is wrong."""
        rows = [("checked:", "stored", "recomputed", "unproven", "")]
        for kind, proof in self.proofs.items():
            counts = (proof.stored, proof.recomputed, proof.unproven)
            cells = [f"{count:,}" if count else "-" for count in counts]
            rows.append((kind, cells[0], cells[1], cells[2], "; ".join(proof.why)))
        yield from aligned(rows)
        for text in self.faults:
            yield f"fault: {text}"
        for text in self.wrong:
            yield f"wrong: {text}"
