"""`cnnvis montage screen`: the toolbox's screen for images and units, without a screen."""

from __future__ import annotations

from cnnvis_cli.errors import TooManyUnreadable, UsageError
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.beforehand import check_images
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.figures.render import draw_figure, figure_files, is_there
from cnnvis_cli.stages.single.inputs import photographs
from cnnvis_cli.stages.single.screen_film import apart, screen_films
from cnnvis_cli.stages.single.screen_unit import SCREEN_KIND, ScreenUnit


def check_screen(plan: Plan) -> None:
    """Raise `UsageError` where there is no image or no unit to show."""
    settings = plan.montage
    if settings.kind != (SCREEN_KIND,):
        raise UsageError("screen takes images, so it is drawn alone: cnnvis montage screen IMAGE")
    check_images(settings.images, "montage screen")
    if not settings.unit:
        raise UsageError("which unit? cnnvis montage screen IMAGE --unit conv5/151")


def screen(session: Session) -> None:
    """Draw the screen of every image and unit, and film those of videos; old ones are left.

    Raise `TooManyUnreadable` at the end if too large a share of the images cannot be used.
    """
    session = session.here()
    units = [ScreenUnit.of(session, text) for text in session.plan.montage.unit]
    stills, videos = apart(session)
    late: TooManyUnreadable | None = None
    try:
        if stills:
            _draw(session, stills, units)
    except TooManyUnreadable as error:
        late = error
    for path in screen_films(session, videos, units):
        session.report.result(str(path))
    if late is not None:
        raise late


def _draw(session: Session, stills: list[str], units: list[ScreenUnit]) -> None:
    for image in photographs(session, stills):
        for unit in units:
            figure = unit.figure(image)
            if not is_there(session, figure):
                draw_figure(session, figure)
            for path in figure_files(session, figure):
                session.report.result(str(path))
