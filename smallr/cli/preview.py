"""Show rows as a run would see them, before any weights are loaded.

  smallr preview cogpo
  smallr preview sft --config.data.train=mine.jsonl --rows=5

The first row, the last and one in the middle (--rows=N: N spread evenly) as the model reads them, with the tokens that are
scored in colour (in brackets where there is none); what was dropped and why; and the examples that the first packed row holds.
"""

from __future__ import annotations

from argparse import Namespace
from itertools import groupby
from typing import TYPE_CHECKING

from smallr.cli.inputs import check_training
from smallr.cli.parsing import Parser

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console
    from transformers import PreTrainedTokenizerFast

    from smallr.training.splits import Split

_SHOWN = 8  # tokens of a completion that are shown one by one


def flags(parser: Parser) -> None:
    """Names the flags."""
    parser.config(trains=True)
    parser.flag("rows", 3, "rows to show", low=1)


def run(options: Namespace) -> None:
    """Reads and packs the training rows, and prints some."""
    check_training(options.config)

    from rich.console import Console

    from smallr.training.objective import make_objective
    from smallr.training.opening import open_trained
    from smallr.training.splits import load_split

    config, console = options.config, Console(soft_wrap=True, highlight=False)
    tokenizer = open_trained(config.model, config.tokenizer).tokenizer()
    split = load_split(config, tokenizer, make_objective(config), "train")
    for index in spread(len(split.examples), options.rows):
        _show_example(console, tokenizer, split, index)
    _show_row(console, split)


def spread(count: int, wanted: int) -> list[int]:
    """Returns up to `wanted` numbers below `count`, evenly from the first to the last."""
    if wanted == 1:
        return [0]
    return sorted({round(i * (count - 1) / (wanted - 1)) for i in range(wanted)})


def _show_example(console: Console, tokenizer: PreTrainedTokenizerFast, split: Split, index: int) -> None:
    example = split.examples[index]
    console.rule()
    console.print(f"{split.examples.place(index)}: {len(example.prefix)} tokens of prompt", style="bold", markup=False)
    console.print(tokenizer.decode(example.prefix), style="dim", markup=False)
    for s, completion in enumerate(example.completions):
        name = split.completion_names[s] if s < len(split.completion_names) else f"completion {s}"
        scored = int((completion.roles != 0).sum())
        console.print(f"{name}: {len(completion.tokens)} tokens, {scored} scored", style="bold")
        _show_tokens(console, tokenizer, completion.tokens, completion.roles)
        pieces = " ".join(repr(tokenizer.decode([token])) for token in completion.tokens[:_SHOWN].tolist())
        console.print(f"tokens: {pieces}{' …' if len(completion.tokens) > _SHOWN else ''}", style="dim", markup=False)


def _show_tokens(console: Console, tokenizer: PreTrainedTokenizerFast, tokens: np.ndarray, roles: np.ndarray) -> None:
    """Prints the text of a completion, scored stretches apart from the others."""
    pairs = zip(tokens.tolist(), roles.tolist(), strict=True)
    for is_scored, stretch in groupby(pairs, lambda pair: pair[1] != 0):
        text = tokenizer.decode([token for token, _ in stretch])
        if is_scored and not console.color_system:
            text = f"[{text}]"
        console.print(text, style="green" if is_scored else "dim", end="", markup=False)
    console.print()


def _show_row(console: Console, split: Split) -> None:
    """Prints what the first row of the first step holds."""
    row, plan, examples = split.plan.step(0)[0], split.plan, split.examples
    lengths = [int(plan.sizes.tokens(plan.share_prompt)[index]) for index in row]
    used, capacity = sum(lengths), plan.shape.tokens
    console.rule(
        f"the first packed row: {len(row)} examples, {used} of {capacity} tokens ({1 - used / capacity:.0%} padding)"
    )
    for index, length in zip(row, lengths, strict=True):
        completions = " + ".join(map(str, examples.completion_lengths[index].tolist()))
        bar = "█" * max(1, round(60 * length / capacity))
        console.print(f"{bar}  {examples.place(index)}: {examples.prefix_lengths[index]} of prompt + {completions}")
    stats = plan.stats(0)
    console.print(
        f"{stats.examples} examples in {stats.rows} rows, {stats.steps} steps an epoch, {stats.padding:.1%} padding"
    )
