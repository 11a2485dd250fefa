"""Decomposition: a teacher writes sub-questions of problems, answers them and judges them (arXiv 2402.01812).

Try it:    smallr decompose --out=runs/decompose/arithmetic
Really:    smallr decompose --config.model=http://HOST/v1#MODEL \
           --config.data.source=tfds:gsm8k --config.data.splits=train
Hardware:  none to speak of for the oracle or a server; a local model needs what it needs.
Time:      seconds with the oracle; with a server 15 requests a problem.
Expect:    600 sets of sub-questions of 200 problems, and data sets for training: bc, filtered_bc, ilql_full, ilql_sparse
           and pairs. See docs/methods/decomposition.md.
"""

from ml_collections import ConfigDict

from smallr.methods.decomposition.config import generation


def get_config() -> ConfigDict:
    """Returns generation on the first 200 training and 50 test problems of the built-in arithmetic."""
    config = generation()
    config.data.splits = "train[:200],test[:50]"
    config.model = "oracle:arithmetic?omit=0.1&repeat=0.1&useless=0.1&verdict_error=0.1"
    config.lock()
    return config
