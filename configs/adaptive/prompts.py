"""Mode prompts: two soft prompts of a frozen student, one to answer first, one to think first.

Command:   python -m smallr.train --config=configs/adaptive/prompts.py --config.model=STUDENT
Smoke:     python -m smallr.train --config=configs/adaptive/prompts.py:smoke
Use:       python -m smallr.cli.generate --adaptive=RUN --prompts=FILE
Export:    python -m smallr.cli.convert --from=RUN --to=FOLDER --adapter-only
Hardware:  as configs/adaptive/answer_first.py; each row makes two examples.
Fields:    config.soft, see docs/methods/adaptive.md
"""

from ml_collections import ConfigDict

from smallr.config import add_soft_prompts, finish, rationale


def get_config(arg: str | None = None) -> ConfigDict:
    """L_post for one soft prompt and L_pre for the other, in one run, on the built-in arithmetic rows."""
    return finish(add_soft_prompts(rationale(order="both")), arg)
