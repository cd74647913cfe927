"""One small function per class of the generated images: eight patterns and sixteen objects.

A drawing paints its object upright into [-1, 1] of the sheet's plane; the scene decides its place,
size and rotation in the image. A new class is one decorated function.
"""

from cnnvis_cli.demo.drawings import creatures, patterns, things
from cnnvis_cli.demo.drawings.entry import DRAWINGS, Drawing

__all__ = ["DRAWINGS", "Drawing", "creatures", "patterns", "things"]
