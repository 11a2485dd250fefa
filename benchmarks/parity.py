"""Measures how far smallr is from transformers, family by family: `python -m benchmarks.parity`.

Tiny random models (tests/models/families/models.py), two rows of 37 tokens, past every window, on a CPU. Needs the extra
`test`. Logits: the largest difference over the largest logit. Gradients: the same for the worst parameter. bfloat16: the error
of our logits over that of transformers' own, both against its float32.
"""

from __future__ import annotations

from tests.models.families.checks import parity
from tests.models.families.models import MODELS


def main() -> None:
    """Prints the table."""
    print(
        "| model | logits, float32 | gradients, float32 | of the parameter | logits, bfloat16 |\n|---|---|---|---|---|"
    )
    for name, make in MODELS.items():
        found = parity(make())
        worst = max(found.gradients, key=found.gradients.get)
        numbers = f"{found.logits:.1e} | {found.gradients[worst]:.1e} | `{worst}` | {found.bfloat16:.2f}"
        print(f"| {name} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
