"""smallr: train small reasoning language models from teacher rationales, in JAX.

    model = smallr.load("runs/mine")                        # generate, logps, save_hf
    smallr.Trainer(smallr.load_config("cogpo")).fit()

Names are imported when they are asked for, so that `import smallr` takes no time; docs/api.md describes them.
"""

import importlib
import os
import time
from typing import TYPE_CHECKING, Any

# transformers is here for tokenizers and configs; it need not say that PyTorch is missing.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

if TYPE_CHECKING:
    from smallr.api.configs import load_config
    from smallr.api.model import Model, load
    from smallr.core.errors import UserError
    from smallr.losses.preference.pairs import Pairs
    from smallr.losses.preference.registry import Field, register_loss
    from smallr.training.objective import register_objective
    from smallr.training.objectives.base import Objective
    from smallr.training.trainer import Trainer

__version__ = "0.1.0"
IMPORTED_AT = time.time()  # a source file that is newer may not be what runs
__all__ = [
    "Field",
    "Model",
    "Objective",
    "Pairs",
    "Trainer",
    "UserError",
    "load",
    "load_config",
    "register_loss",
    "register_objective",
]
_HOME = {
    "Field": "losses.preference.registry",
    "Model": "api.model",
    "Objective": "training.objectives.base",
    "Pairs": "losses.preference.pairs",
    "Trainer": "training.trainer",
    "UserError": "core.errors",
    "load": "api.model",
    "load_config": "api.configs",
    "register_loss": "losses.preference.registry",
    "register_objective": "training.objective",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
