"""COLLATE on your own rows: question, answer and, where there is one, rationale (arXiv 2506.02519).

Command:   smallr collate base --config.model=MODEL --config.data.rows=rows.jsonl \
           --config.data.validation=test.jsonl --out=runs/collate
Hardware:  a GPU that trains the model; to try it on two CPU cores take configs/collate/arithmetic.py.
Time:      of two providers and two rounds: one SFT, four runs of DPO on shares and pairs, six passes of generation.
Expect:    runs/collate is the chosen provider as a model; report.md says how good it is. See docs/methods/collate.md.
"""

from ml_collections import ConfigDict

from smallr.methods.collate.config import base


def get_config() -> ConfigDict:
    """The published settings."""
    config = base()
    config.lock()
    return config
