"""Compare two evaluations: python -m smallr.cli.compare A B [--shared] [--confidence=0.95]

A and B are folders of python -m smallr.cli.evaluate on one benchmark. The difference is B minus A, question by question,
with a bootstrap interval and the p-value of McNemar's exact test.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import app, flags

from smallr.core.errors import UserError

SHARED = flags.DEFINE_bool("shared", False, "Leave out questions that only one of the two has")
CONFIDENCE = flags.DEFINE_float("confidence", 0.95, "Of the interval", lower_bound=0.5, upper_bound=0.9999)


def main(argv: list[str]) -> None:
    """Prints the comparison; errors of the user's making are one line."""
    if len(argv) != 3:
        raise app.UsageError("expected two folders: python -m smallr.cli.compare A B")
    from smallr.evals.comparison import compare

    try:
        found = compare(Path(argv[1]), Path(argv[2]), shared_only=SHARED.value, confidence=CONFIDENCE.value)
    except UserError as error:
        sys.exit(f"smallr: {error}")
    d = found.difference
    left_out = f"; left out: {found.only_a} only in A, {found.only_b} only in B" if found.only_a or found.only_b else ""
    print(f"{found.benchmark}, {found.metric}, {found.shared} questions{left_out}")
    print(f"  A  {d.mean_a:.4f}  {found.models[0]}  {argv[1]}")
    print(f"  B  {d.mean_b:.4f}  {found.models[1]}  {argv[2]}")
    print(f"  B - A  {d.difference:+.4f}, {CONFIDENCE.value:.0%} interval {d.low:+.4f} … {d.high:+.4f}")
    print(
        f"  B better on {d.better}, worse on {d.worse}, equal on {d.questions - d.better - d.worse}; p = {d.p_value:.3g}"
    )


if __name__ == "__main__":
    app.run(main)
