"""Chooses pairs of rationales: gold over own for a provider, the more useful one over the less useful in a round."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smallr.methods.collate.data import NothingLeftError, Row, opened, written
from smallr.methods.collate.modes import RATIONALE, REFINE, Modes

TIE, BELOW, FEW, LONG = "tie", "not above u_0", "fewer than two usable rationales", "too long"
_ADVICE = {  # by the reason that most questions were left out for
    TIE: "providers that write the same give ties only: train them longer (config.provider.epochs, learning_rate), "
    "or sample with config.generation.temperature",
    BELOW: "behind no rationale is the answer likelier than without one: train the model of instruction tuning longer "
    "(config.tuning.epochs, learning_rate), or set config.pairs.filter=False",
    FEW: "the stages that wrote the rationales count why: raise config.generation.max_tokens where they are cut off, or "
    "train the model of instruction tuning longer (config.tuning.epochs, learning_rate)",
    LONG: "raise config.utility.row_length",
}


def gold_over_own(folder: Path, share: Sequence[Row], own: dict[str, Any], modes: Modes) -> dict[str, Any]:
    """Writes the pairs that make a provider distinct: the gold rationale over the one that the model writes itself.

    Raises:
      NothingLeftError: no pair is left.
    """
    rows, counts = [], Counter({"rows in": len(share), "kept": 0})
    for row, rationale in zip(share, opened(own), strict=True):
        if not rationale["usable"]:
            counts[rationale["problem"]] += 1
        elif rationale["text"] == row["rationale"]:
            counts["own rationale is the gold one"] += 1
        else:
            counts["kept"] += 1
            rows.append(_pair(modes, row["question"], row["rationale"], rationale["text"]))
    if not rows:
        raise NothingLeftError(
            _no_pair("gold over own rationales", counts, "raise config.generation.max_tokens or temperature")
        )
    return written(folder, rows, counts)


def prefer_useful(
    folder: Path, scored: dict[str, Any], modes: Modes, rule: dict[str, Any], where: str
) -> dict[str, Any]:
    """Writes the pairs of a round: of each question the rationale of highest utility over that of lowest.

    A pair is kept if the two differ and the winner's utility is above that of the answer without a rationale.

    Args:
      folder: of the stage.
      scored: value of the stage that scored the rationales.
      modes: texts of the modes.
      rule: `winner` and `filter` of `config.pairs`, and the `seed` of random winners.
      where: the round, for messages.

    Raises:
      NothingLeftError: no pair is left.
    """
    table, rows = opened(scored), []
    counts = Counter({"rows in": len(table), "kept": 0})
    for number, row in enumerate(table):
        pair, reason = choose(row, rule, number)
        counts[reason or "kept"] += 1
        if pair is not None:
            winner, loser = pair
            texts = row["rationales"][winner], row["rationales"][loser]
            utilities = {"winner": winner, "loser": loser, "u_winner": row["utilities"][winner]}
            utilities |= {"u_loser": row["utilities"][loser], "u_0": row["u_0"]}
            rows.append(_pair(modes, row["question"], *texts) | utilities)
    if not rows:
        commonest = max(_ADVICE, key=lambda reason: counts[reason])
        raise NothingLeftError(_no_pair(where, counts, _ADVICE[commonest]))
    return written(folder, rows, counts)


def choose(row: Row, rule: dict[str, Any], number: int = 0) -> tuple[tuple[int, int] | None, str]:
    """Returns (winner, loser) of a question's rationales, or None and the reason.

    Args:
      row: `utilities`, with None where a rationale cannot be used, and `u_0`, None where the question is too long.
      rule: see `prefer_useful`.
      number: of the row, for random winners.
    """
    if row["u_0"] is None:
        return None, LONG
    known = {index: utility for index, utility in enumerate(row["utilities"]) if utility is not None}
    if len(known) < 2:
        return None, FEW
    winner, loser = max(known, key=known.get), min(known, key=known.get)
    if known[winner] == known[loser]:
        return None, TIE
    if rule["winner"] == "random":
        winner, loser = random.Random(f"{rule['seed']} {number}").sample(sorted(known), 2)
        if row["rationales"][winner] == row["rationales"][loser]:
            return None, TIE
    if rule["filter"] and known[winner] <= row["u_0"]:
        return None, BELOW
    return (winner, loser), ""


def refined_pairs(
    folder: Path, drafts: dict[str, Any], refined: dict[str, Any], modes: Modes, where: str
) -> dict[str, Any]:
    """Writes the pairs of a round with refinement (arXiv 2503.02463): for generation and for refinement, in one set.

    Every provider has refined every rationale. For generation a winner is kept if u_0 < u(winner) and u(winner) > u(loser);
    for refinement of one rationale if the winner beats the rationale that it started from and the other refinement.

    Raises:
      NothingLeftError: no pair is left.
    """
    rows, counts = [], Counter({"rows in": len(drafts_table := opened(drafts)), "kept": 0})
    for row, better in zip(drafts_table, opened(refined), strict=True):
        count = len(row["rationales"])
        pair, reason = choose(row, {"winner": "utility", "filter": True})
        counts[f"generation: {reason or 'kept'}"] += 1
        if pair is not None:
            rows.append(_pair(modes, row["question"], *(row["rationales"][each] for each in pair)))
        for index, draft in enumerate(row["rationales"]):
            start = row["utilities"][index]
            own = slice(index * count, (index + 1) * count)  # refinements of this draft, by provider
            part = {"utilities": better["utilities"][own], "u_0": start}
            pair, reason = (None, FEW) if start is None else choose(part, {"winner": "utility", "filter": True})
            counts[f"refinement: {reason.replace('u_0', 'its draft') or 'kept'}"] += 1
            if pair is not None:
                texts = (better["rationales"][own][each] for each in pair)
                rows.append(_pair(modes, row["question"], *texts, draft=draft))
    counts["kept"] = len(rows)
    if not rows:
        raise NothingLeftError(_no_pair(where, counts, "train the providers longer, or set config.refine=False"))
    return written(folder, rows, counts)


def _pair(modes: Modes, question: str, winner: str, loser: str, draft: str | None = None) -> dict[str, Any]:
    prompt = modes.prompt(RATIONALE if draft is None else REFINE, question, draft or "")
    return {
        "prompt": prompt,
        "chosen": modes.written_rationale(winner),
        "rejected": modes.written_rationale(loser),
    }


def _no_pair(where: str, counts: Counter[str], advice: str) -> str:
    listed = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    return f"{where}: no pair left ({listed}); {advice}"
