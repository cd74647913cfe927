"""What work will take of the disk, told before it begins; what cannot fit is refused."""

from __future__ import annotations

from cnnvis_cli.errors import CnnvisError
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.store.room import Room, free_bytes, in_words

WORTH_SAYING = 1 << 28  # bytes


def check_disk(session: Session, stage: str, room: Room, remedy: str, seconds: float = 0) -> None:
    """Say what a stage will take, if that is much; raise `CnnvisError` if the disk has less.

    With ``--yes`` it is only said. A shard takes its share.
    """
    share = session.plan.share(1 << 20)
    part = len(share) / (1 << 20)
    results, parts = int(room.results * part), int(room.parts * part)
    free, path = free_bytes(session.run.path), session.run.path
    if results + parts < WORTH_SAYING:
        return
    told = (
        f"about {in_words(results)} of results, and up to {in_words(parts)} more while it works; "
        f"{in_words(free)} are free"
    )
    if results + parts > free and not session.plan.yes:
        raise CnnvisError(
            f"{path}: {stage} needs {told}; {remedy}, choose another --run, or go on with --yes"
        )
    duration = f", for about {seconds / 3600:.1f} hours" if seconds > 360 else ""
    session.report.once(f"{stage}: {told}{duration}")
