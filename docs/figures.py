"""Draws the pictures of docs/performance.md and docs/scale.md from the tables of these pages.

python docs/figures.py
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOCS = Path(__file__).parent


def table(page: str, first: str) -> list[list[str]]:
    """Returns the cells of the table of a page whose header begins with `first`, without header and rule."""
    lines = (DOCS / page).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if re.match(rf"\|\s*{re.escape(first)}\s*\|", line))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def performance() -> None:
    """Draws seconds and memory of a step beside TRL's."""
    import matplotlib.pyplot as plt

    rows = table("performance.md", "case")
    names = [f"{case} ({dtype})" for case, dtype, *_ in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), sharey=True)
    for axis, columns, title in ((left, (2, 3), "seconds a step"), (right, (5, 6), "GiB")):
        for offset, column, label in ((-0.2, columns[0], "smallr"), (0.2, columns[1], "TRL 1.16")):
            values = [float(row[column]) for row in rows]
            axis.barh([i + offset for i in range(len(rows))], values, 0.38, label=label)
        axis.set_xlabel(title)
        axis.spines[["top", "right"]].set_visible(False)
    left.set_yticks(range(len(rows)), names)
    left.invert_yaxis()
    right.legend(loc="lower right")
    _save(figure, "performance_trl.png")


def scale() -> None:
    """Draws the bounds of a step of each model on each slice."""
    import matplotlib.pyplot as plt

    rows, slices = table("scale.md", "slice"), []
    for row in rows:
        slices.append(row[0] or slices[-1])
    names = [f"{slice_} {row[1]}" for slice_, row in zip(slices, rows, strict=True)]
    bounds = [[float(value.replace(",", "")) for value in row[8].split("/")] for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for index, label in enumerate(("products", "HBM", "wires")):
        places = [i + 0.27 * (index - 1) for i in range(len(rows))]
        left.barh(places, [bound[index] for bound in bounds], 0.25, label=label)
    left.set_xlabel("ms a step at least, by each resource")
    left.legend(loc="upper right")
    right.barh(range(len(rows)), [float(re.match(r"\d+", row[9])[0]) for row in rows], 0.6, color="0.5")
    right.set_xlabel("MFU at most, %")
    right.set_xlim(0, 100)
    left.set_yticks(range(len(rows)), names)
    left.invert_yaxis()
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    _save(figure, "scale_bounds.png")


def _save(figure: Figure, name: str) -> None:
    figure.tight_layout()
    figure.savefig(DOCS / "results" / name, dpi=110)


if __name__ == "__main__":
    performance()
    scale()
