"""Shows preference pairs: chosen and rejected side by side. COLLATE's have utilities, others may have a gap.

confidence    COLLATE: the winner's share of the two utilities
gap           COLLATE: utility of the winner minus that of the loser; else 1, 2, 3 for small, medium, large
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from smallr.data.rows import GAPS
from smallr.review.rows import MORE, SIDE, Kind, Panel, Row, RowMaker, as_shown, last_turn, with_last_turn

COLUMNS = ("chosen", "rejected")
UTILITIES = ("u_winner", "u_loser", "u_0")
_SHOWN = ("prompt", "chosen", "rejected", *UTILITIES, "reviewed", "id", "question")


def _edited(values: Mapping[str, Any], text: str) -> dict[str, Any]:
    return {**values, "chosen": with_last_turn(values["chosen"], text)}


KIND = Kind("pairs", "Is the chosen text good, and better than the rejected one?", _edited)


def row(make: RowMaker, split: str, number: int, values: Mapping[str, Any]) -> Row:
    """Makes the row of a pair."""
    prompt, chosen = as_shown(values.get("prompt")), as_shown(values["chosen"])
    u_winner, u_loser, u_0 = (values.get(name) for name in UTILITIES)
    scored = u_winner is not None and u_loser is not None
    total = u_winner + u_loser if scored else 0.0
    above = scored and u_0 is not None and u_winner > u_0
    gap = u_winner - u_loser if scored else GAPS.index(values["gap"]) + 1 if values.get("gap") in GAPS else None
    return make(
        split,
        number,
        str(values.get("id") or prompt) + str(values.get("gap") or ""),
        values,
        title=values.get("question") or prompt or chosen,
        text=last_turn(values["chosen"]),
        panels=_panels(values, prompt, chosen),
        source=str(values.get("rejected_from") or values.get("source") or split),
        verdict=("above u_0" if above else "not above u_0") if scored and u_0 is not None else "",
        approved=above if scored and u_0 is not None else None,
        confidence=u_winner / total if total else None,
        gap=gap,
    )


def _panels(values: Mapping[str, Any], prompt: str, chosen: str) -> Iterator[Panel]:
    rejected = as_shown(values["rejected"])
    yield Panel("prompt", prompt)
    numbers = [f"{name} {values[name]:.4g}" for name in UTILITIES if values.get(name) is not None]
    if numbers:
        yield Panel("utilities", ", ".join(numbers))
    yield Panel("chosen", chosen, SIDE, rejected, is_new=True)
    yield Panel("rejected", rejected, SIDE, chosen)
    others = {name: value for name, value in values.items() if name not in _SHOWN and value not in (None, "")}
    if others:
        yield Panel("more", "\n".join(f"{name}: {as_shown(value)}" for name, value in others.items()), MORE)
