"""Score rows under a model: python -m smallr.cli.score --model=NAME --data=SOURCE --out=FOLDER [--kind=…] [--split=…]

Writes the rows as a data set with `ref_<name>` (summed) and `token_logps_<name>` (a list) for each completion: chosen and
rejected of pairs, completion of rows with one. Rows of the kind completions (any number of them behind a prompt, which is
computed once) get `ref_completions` and `token_logps_completions`, lists of these. Pairs scored in this way need no reference pass:
--config.data.train=FOLDER --config.objective.reference=columns.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import app, flags, logging

from smallr.core.errors import UserError
from smallr.core.programs import keep_programs

MODEL = flags.DEFINE_string("model", None, "Any model that training takes", required=True)
TOKENIZER = flags.DEFINE_string("tokenizer", "", "A folder or hub id whose tokenizer comes in place of the model's own")
DATA = flags.DEFINE_string("data", None, "Any source of rows that training takes", required=True)
OUT = flags.DEFINE_string("out", None, "Folder to write; must not exist", required=True)
SPLIT = flags.DEFINE_string("split", "train", "Split, or a part of it as in train[:50%]")
KIND = flags.DEFINE_string("kind", "preference", "preference | sft | completions | rationale")
COLUMNS = flags.DEFINE_list("columns", [], "Our name=the source's name, comma-separated, e.g. prompt=question")
CHAT = flags.DEFINE_bool("chat", True, "Wrap plain strings in the chat template")
ORDER = flags.DEFINE_string("order", "answer_first", "Of rationale rows: answer_first | rationale_first")
ROWS = flags.DEFINE_integer("rows", 8, "Packed rows a step")
ROW_LENGTH = flags.DEFINE_integer("row_length", 1024, "Tokens a row; longer examples are left unscored")
DTYPE = flags.DEFINE_string("dtype", "float32", "float32 | bfloat16")


def main(argv: list[str]) -> None:
    """Runs `training.scoring.write_scores`; errors of the user's making are one line."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)
    keep_programs()

    from smallr.training.scoring import ScoreOptions, write_scores  # after the cache is set

    try:
        if wrong := [pair for pair in COLUMNS.value if "=" not in pair]:
            raise UserError(f"--columns={wrong[0]}: expected OURS=THEIRS")
        columns = dict(pair.split("=", 1) for pair in COLUMNS.value)
        names = ("model", "tokenizer", "data", "split", "kind", "chat", "order", "rows", "row_length", "dtype")
        options = ScoreOptions(columns=columns, **{name: flags.FLAGS[name].value for name in names})
        scored = write_scores(options, Path(OUT.value))
    except UserError as error:
        sys.exit(f"smallr: {error}")
    print(f"{len(scored)} rows in {OUT.value}: {', '.join(scored.column_names)}")


if __name__ == "__main__":
    app.run(main)
