"""Make preference pairs of the three gaps from a CRV run.

smallr pairs --crv=FOLDER --out=FOLDER [--mix=natural|balanced|1:1:2] [--holdout=SOURCE[@SPLIT] …] [--exempt=test]
"""

from __future__ import annotations

import shlex
from argparse import Namespace
from pathlib import Path

from smallr.cli.parsing import Parser
from smallr.core.locks import output_lock


def flags(parser: Parser) -> None:
    """Names the flags."""
    parser.flag("crv", None, "folder of a CRV run", required=True)
    parser.flag("out", None, "folder to write; a data set there is replaced", required=True)
    parser.flag("mix", "natural", "natural, balanced, or shares of small:medium:large like 1:1:2")
    parser.flag("holdout", [], "SOURCE[@SPLIT] whose questions no pair may have; may be repeated", many=True)
    parser.flag("exempt", [], "split that is not trained on and may have them; may be repeated", many=True)
    parser.flag("seed", 0, "of the choice among pairs")


def run(options: Namespace) -> None:
    """Makes the pairs and says how many there are."""
    from smallr.methods.crv.pairs import build_pairs

    names = ("mix", "holdout", "exempt", "seed")
    with output_lock(Path(options.out)):
        report = build_pairs(Path(options.crv), Path(options.out), **{name: getattr(options, name) for name in names})
    for split, counts in report["splits"].items():
        gaps = ", ".join(f"{count} {gap}" for gap, count in counts["pairs"].items())
        left_out = f"{counts['duplicates']} duplicates and {counts['contaminated_rows']} contaminated rows left out"
        print(f"{split}: {gaps}; {left_out}")
        for question in counts["contaminated"][:10]:
            print(f"  in the evaluation set: {question[:100]!r}")
    held_out = " --config.data.eval_split=test" if "test" in report["splits"] else ""
    source = shlex.quote(f"--config.data.train={options.out}")
    print(f"written to {options.out}\nnext: smallr train cogpo {source}{held_out}")
