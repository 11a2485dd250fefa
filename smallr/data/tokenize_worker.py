"""Tokenises parts of a data set in a process of its own: `python -m smallr.data.tokenize_worker FOLDER`, started by `parts`.

The folder holds `job.json` and the tokenizer. Each line of standard input names a part: an Arrow file of rows, the
number of the first, and the folder for their `TokenSet`. Each line of standard output answers: the report, or the
message of a `DataError`. The process ends with its input.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from smallr.data.drops import DropReport
from smallr.data.encode import Encoder
from smallr.data.errors import DataError
from smallr.data.formats import Reading
from smallr.data.parts import load_tokenizer
from smallr.data.tokenize import ExampleMaker, TokenizeOptions


def main() -> None:
    """Answers until the input ends."""
    # Whatever else writes to standard output must not stand among the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    tokenizer = load_tokenizer(folder)
    options, reading = TokenizeOptions(**job["options"]), Reading(**job["reading"])
    maker = ExampleMaker(Encoder(tokenizer), tokenizer, options, reading)
    for line in sys.stdin:
        part = json.loads(line)
        numbers = dict(enumerate(part["numbers"], part["start"]))
        report = DropReport(job["source"], options.max_length, numbers=numbers)
        print(json.dumps(_answer(maker, part, report)), file=answers, flush=True)


def _answer(maker: ExampleMaker, part: dict[str, Any], report: DropReport) -> dict[str, Any]:
    with pa.memory_map(part["rows"]) as file:
        rows = datasets.Dataset(pa.ipc.open_stream(file).read_all())
        try:
            report = maker.write(Path(part["tokens"]), rows, report, start=part["start"])
        except DataError as error:
            return {"error": str(error)}
    return {"report": report.to_dict()}


if __name__ == "__main__":
    main()
