"""Planning on Spider: candidates of eight systems, executed, voted on, and judged by a small model.

Command:   smallr plan spider --config.data.source=dev_candidates.jsonl.gz --config.data.databases=database \
           --out=runs/plan
Smoke:     the same with spider:smoke, 40 questions
Hardware:  2 CPU cores; a GPU for a discriminator on all questions.
Time:      half a minute without a discriminator (--config.discriminator.model= is the default).
Expect:    see docs/methods/planner.md.
Fields:    --config.discriminator.model=smollm2-135m-instruct adds a judge,
           --config.planners="('rerank','iterative','tree','oracle')" the curve of the oracle,
           --config.data.instances=5 further instances of each database.
"""

from ml_collections import ConfigDict

from smallr.methods.planner.config import base


def get_config(arg: str | None = None) -> ConfigDict:
    """The columns of the candidates of Spider's development set."""
    config = base()
    columns = {"id": "question_id", "database": "db_id"}
    config.data.columns.update(columns)
    if arg == "smoke":
        config.data.sample = 40
    config.lock()
    return config
