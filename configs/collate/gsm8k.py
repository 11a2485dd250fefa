"""COLLATE on GSM8K: its worked solutions are the rationales, its answers the task.

Command:   smallr collate gsm8k --out=runs/collate
           smallr collate gsm8k --config.data.rows='train.jsonl@train[:7000]' \
               --config.data.validation='train.jsonl@train[7000:]'              without the hub
Hardware:  a GPU for all rows. On a CPU without bfloat16 units add --config.training.dtype=float32.
Time:      of all rows not measured: 20 days on two busy cores of an AMD Zen 3, by the estimate at the start.
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
