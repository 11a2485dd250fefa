"""COLLATE on GSM8K: its worked solutions are the rationales, its answers the task.

Command:   smallr collate gsm8k --out=runs/collate
           smallr collate gsm8k --config.data.rows=FOLDER@train --config.data.validation=FOLDER@test   without the hub
Hardware:  any GPU for SmolLM2-135M.
Time:      not measured whole; see docs/methods/collate.md for what was.
Expect:    runs/collate is the chosen provider as a model; report.md says how good it is.
"""

from ml_collections import ConfigDict

from smallr.methods.collate.config import base


def get_config() -> ConfigDict:
    """SmolLM2-135M-Instruct, two providers, two rounds."""
    config = base()
    config.data.rows = "hub:openai/gsm8k@train[:7000]"
    config.data.validation = "hub:openai/gsm8k@train[7000:]"  # the test split stays for `smallr evaluate gsm8k`
    config.data.answer_mark = "####"
    config.lock()
    return config
