"""One small function for every class of the drawn images: eight patterns and sixteen objects.

A drawing paints its object upright into [-1, 1] of the sheet's plane; where it ends up in the
image, how large and how much turned, is the scene's affair. A new class is one decorated function.
"""

from cnnvis_cli.dataset.drawings import creatures, patterns, things
from cnnvis_cli.dataset.drawings.entry import DRAWINGS, Drawing

__all__ = ["DRAWINGS", "Drawing", "creatures", "patterns", "things"]
