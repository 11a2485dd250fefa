"""Label questions for a router: which of them a student had better think about.

  smallr labels --model=RUN_OR_MODEL --data=ROWS --out=FOLDER

Writes the rows as a data set with `label`; a run of configs/adaptive/router.py does it on the way for rows without.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from smallr.cli.inputs import announce, check, check_model, check_source
from smallr.cli.parsing import Parser
from smallr.core.errors import UserError
from smallr.core.locks import output_lock


def flags(parser: Parser) -> None:
    """Names the flags."""
    parser.flag("model", None, "run, checkpoint or model: the student", required=True)
    parser.flag("data", None, "rows with question and answer, as config.data.train names them", required=True)
    parser.flag("split", "train", "split, or a part of it as in train[:50%]")
    parser.flag("out", None, "folder to write; must not exist", required=True)
    parser.flag("prompts", "", "folder of mode prompts")
    parser.flag("margin", 0.0, "nats a token by which thinking has to be better")
    parser.flag("max_tokens", 256, "of the student's own rationale and answer", low=1)
    parser.flag("decode_slots", 32, "rationales written at once", low=1)


def run(options: Namespace) -> None:
    """Labels the rows and says what was found."""
    out = Path(options.out)
    with output_lock(out):
        if out.exists():
            raise UserError(f"{out} exists: remove it, or write elsewhere with --out")
        check("--model", check_model, options.model)
        check("--data", check_source, options.data)
        announce(f"labelling {options.data} with {options.model}; loading JAX …")
        _label(options, out)


def _label(options: Namespace, out: Path) -> None:
    from smallr.core.files import whole_folder
    from smallr.core.programs import keep_programs
    from smallr.data.sources import load_rows
    from smallr.methods.adaptive.labels import label_rows, report
    from smallr.methods.adaptive.opening import open_student

    keep_programs()
    rows = load_rows(options.data, options.split)
    student = open_student(options.model, prompts=options.prompts, decode_slots=options.decode_slots)
    found = label_rows(student, rows, margin=options.margin, max_tokens=options.max_tokens)
    with whole_folder(out) as folder:
        found.save_to_disk(str(folder))
    print(report(found, len(rows)))
