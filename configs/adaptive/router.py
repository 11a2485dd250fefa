"""A router: soft tokens that read off a frozen student whether it had better think before it answers.

Command:   python -m smallr.train --config=configs/adaptive/router.py --config.model=STUDENT
Smoke:     python -m smallr.train --config=configs/adaptive/router.py:smoke
Use:       python -m smallr.cli.generate --adaptive=RUN --prompts=FILE
Export:    python -m smallr.cli.convert --from=RUN --to=FOLDER --adapter-only
Hardware:  as configs/adaptive/answer_first.py, and what the student takes to write a rationale for every row.
Fields:    config.soft, config.student, config.labels, see docs/methods/adaptive.md

STUDENT is an exported run of configs/adaptive/student.py, or any model with --config.student.prompts=MODE_PROMPTS. Rows
without a column `label` get one from the student before training.
"""

from ml_collections import ConfigDict

from smallr.config import add_labels, add_soft_prompts, choice, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """Cross-entropy of the decision on the built-in arithmetic rows."""
    config = add_labels(add_soft_prompts(choice()))
    config.data.train = config.data.eval = "builtin:arithmetic/rationale"
    if arg == "smoke":
        config.labels.max_tokens, config.labels.slots = 8, 8
    return finish(config, arg)
