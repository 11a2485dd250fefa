"""Any benchmark by its name, e.g. benchmark:svamp, or just svamp.

Command:   smallr evaluate NAME --config.model=RUN_OR_MODEL
Data:      from the hub, or a local copy by --config.data=FILE; some benchmarks have none on the hub and say so.
Metric:    the benchmark's own; an unknown name lists all.
"""

from ml_collections import ConfigDict

from smallr.evals.config import base


def get_config(name: str = "gsm8k") -> ConfigDict:
    """Returns the evaluation of one benchmark."""
    return base(name)
