"""CRV: critique, rethink and verify a teacher's rationales, so that they fit a small student (arXiv 2504.09802).

Try it:    smallr crv annotate --config.model=oracle:arithmetic --out=runs/crv/arithmetic
Really:    smallr crv annotate \
           --config.model=http://HOST/v1#MODEL --config.data.source=rows.jsonl
Hardware:  none to speak of for the oracle or a server; a local model needs what it needs.
Time:      seconds with the oracle; with a server some 6 requests a row.
Expect:    with the oracle all 200 training rows verified; runs/crv/arithmetic/verified, /failed and report.md.
           See docs/methods/crv.md.
"""

from ml_collections import ConfigDict

from smallr.methods.crv.config import base


def get_config() -> ConfigDict:
    """Returns CRV on the first 200 training and 50 test rows of the built-in teacher."""
    config = base()
    config.data.splits = "train[:200],test[:50]"
    config.lock()
    return config
