"""Writes the rows of a choice task for COLLATE: the options stand in the question, the target is the text of one.

    python -m experiments.collate.choices --source=cqa_train.jsonl.gz --out=cqa_train

`--source` has `question`, `choices` (a list of texts), `answer` (one of them), and a teacher's `palm_rationale` with
`palm_correct`, as the rows of Distilling step-by-step have. A rationale that led the teacher to another option is left
out; such a row serves the mode I→A and the rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smallr.core.errors import UserError
from smallr.data.saving import save_rows
from smallr.data.sources import load_rows


def choice_row(row: Mapping[str, Any]) -> dict[str, str]:
    """Returns question with options, answer and rationale (empty where the teacher was wrong).

    Raises:
      UserError: the answer is none of the options.
    """
    question, choices, answer = row["question"].strip(), row["choices"], row["answer"]
    if answer not in choices:
        raise UserError(f"question {question!r}: the answer {answer!r} is none of the options {choices}")
    return {
        "question": f"{question}\nOptions: {'; '.join(choices)}",
        "answer": answer,
        "rationale": row["palm_rationale"].strip() if row["palm_correct"] else "",
    }


def main(argv: list[str] | None = None) -> None:
    """Converts a source, and says how many rows have a rationale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="what `smallr train` takes as rows")
    parser.add_argument("--out", required=True, help="folder of the rows")
    options = parser.parse_args(argv)
    rows = [choice_row(row) for row in load_rows(options.source)]
    save_rows(rows, Path(options.out))
    print(f"{options.out}: {len(rows)} rows, {sum(bool(row['rationale']) for row in rows)} with a rationale")


if __name__ == "__main__":
    main()
