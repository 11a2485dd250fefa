"""Measures a student of decomposition: a solver answers its sub-questions.

Try it:    smallr decompose --solve --config.student.model=RUN
Really:    smallr decompose --solve --config.student.model=RUN --config.solver.model=http://HOST/v1#MODEL \
           --config.data.source=tfds:gsm8k --config.data.splits=test --config.reference.rows=qg_test_dataset.jsonl
Hardware:  what the student and the solver need.
Time:      as long as the student takes to write; the calculator takes seconds.
Expect:    accuracy with its interval, granularity, BLEU and the share with a repeated sub-question. See
           docs/methods/decomposition.md.
"""

from ml_collections import ConfigDict

from smallr.methods.decomposition.config import solving


def get_config() -> ConfigDict:
    """Returns solving of the built-in test problems by the calculator."""
    config = solving()
    config.solver.model = "oracle:calculator"
    config.reference.rows = "builtin"
    config.lock()
    return config
