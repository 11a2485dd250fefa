"""What tests leave out that costs seconds and that no test can see: waits for the disk, and the same drawing again.

A killed process loses nothing that it has written, whether it waited for the disk or not: only a power cut would.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Any


def skip_waits_for_the_disk() -> None:
    """Makes `os.fsync` return at once; that it is called, and what follows where it fails, tests see by their own `fsync`."""
    os.fsync = lambda descriptor: os.fstat(descriptor) and None  # a closed file is still an error


def draw_once() -> None:
    """Makes each place that saves figures draw its first alone: its later files get that image. Call it often."""
    figure = sys.modules.get("matplotlib.figure")
    if figure is None or hasattr(figure.Figure.savefig, "first"):
        return
    figure.Figure.savefig = _first_of_each_place(figure.Figure.savefig)


def _first_of_each_place(save: Callable) -> Callable:
    images: dict[tuple, bytes] = {}

    def savefig(figure: Any, target: Any, **options: Any) -> None:
        frames = [sys._getframe(depth).f_code for depth in (1, 2)]  # a helper that saves, and what it is called for
        place = (*frames, len(figure.axes), options.get("format"))
        if place not in images:
            image = io.BytesIO()
            save(figure, image, **options)
            images[place] = image.getvalue()
        if hasattr(target, "write"):
            target.write(images[place])
        else:
            with open(target, "wb") as file:
                file.write(images[place])

    savefig.first = save
    return savefig
