"""lm-evaluation-harness with smallr's models: smallr lm-eval --model smallr --model_args path=MODEL --tasks …

All arguments are those of `lm_eval`, which has no way to find models of other packages; here they are registered first.
Needs the extra `lm-eval`: pip install '.[lm-eval]' in the clone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from smallr.cli.parsing import Parser
from smallr.core.errors import UserError


def flags(parser: Parser) -> None:
    """Leaves the arguments to the harness."""
    parser.passes_on = True


def run(argv: Sequence[str]) -> None:
    """Registers the model type `smallr` and hands over to the harness."""
    try:
        import lm_eval.__main__
    except ImportError as error:
        raise UserError(f"lm-evaluation-harness is not installed ({error}): pip install 'lm-eval<0.5'") from error
    import smallr.evals.harness  # noqa: F401  registers itself

    sys.argv = ["smallr lm-eval", *argv]
    lm_eval.__main__.cli_evaluate()
