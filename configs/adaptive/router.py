"""A router: soft tokens that read off a frozen student whether it had better think before it answers.

Command:   smallr train adaptive/router --config.model=STUDENT
Smoke:     smallr train adaptive/router:smoke
Use:       smallr generate --adaptive=RUN --prompts=FILE
Export:    smallr convert --from=RUN --to=FOLDER --adapter_only
Hardware:  2 CPU cores with 4 GiB of memory free, or any GPU or TPU.
Time:      about 5 minutes (estimated) on two shared cores of a Xeon with AMX, and what the student takes to write a rationale for
           every row, once.
Expect:    not measured by itself (0.5 of balanced_accuracy is a guess); what a
           choice is worth: docs/methods/answer_first.md.
Fields:    config.soft, config.student, config.labels, see docs/methods/adaptive.md

STUDENT is an exported run of adaptive/student, or any model with --config.student.prompts=MODE_PROMPTS. Rows
without a column `label` get one from the student before training.
"""

from ml_collections import ConfigDict

from smallr.config import add_labels, add_soft_prompts, choice, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the cross-entropy of the decision on the built-in arithmetic rows."""
    config = add_labels(add_soft_prompts(choice()))
    config.data.train = "builtin:arithmetic/rationale"
    if arg == "smoke":
        config.labels.max_tokens, config.labels.decode_slots = 8, 8
    return finish(config, arg)
