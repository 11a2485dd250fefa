"""lm-evaluation-harness with smallr's models: python -m smallr.cli.lm_eval --model smallr --model_args path=MODEL --tasks …

All arguments are those of `lm_eval`, which has no way to find models of other packages; here they are registered first.
Needs the extra: pip install 'smallr[lm-eval]'.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Registers the model type `smallr` and hands over to the harness."""
    try:
        import lm_eval.__main__
    except ImportError as error:
        sys.exit(f"smallr: lm-evaluation-harness is not installed ({error}): pip install 'smallr[lm-eval]'")
    import smallr.evals.harness  # noqa: F401  registers itself
    from smallr.core.errors import UserError

    try:
        lm_eval.__main__.cli_evaluate()
    except UserError as error:
        sys.exit(f"smallr: {error}")


if __name__ == "__main__":
    main()
