"""Mode prompts: two soft prompts of a frozen student, one to answer first, one to think first.

Command:   smallr train adaptive/prompts --config.model=STUDENT
Smoke:     smallr train adaptive/prompts:smoke
Use:       smallr generate --adaptive=RUN --prompts=FILE
Export:    smallr convert --from=RUN --to=FOLDER --adapter_only
Hardware:  2 CPU cores with 4 GiB of memory free, or any GPU or TPU.
Time:      about 10 minutes (estimated) on two shared cores of a Xeon with AMX: answer_first, with two examples a row.
Expect:    not measured by itself; what a choice by them is worth: docs/methods/answer_first.md.
Fields:    config.soft, see docs/methods/adaptive.md
"""

from ml_collections import ConfigDict

from smallr.config import add_soft_prompts, finish, rationale


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns L_post for one soft prompt and L_pre for the other, in one run, on the built-in arithmetic rows."""
    return finish(add_soft_prompts(rationale(order="both")), arg)
