"""Recomputes the figures of the released sub-questions that need no solver: granularity, BLEU and repeats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from experiments.decomposition.released import Policy, find_responses, key_of, read_rows, teacher_rows
from smallr.core.comparison import markdown
from smallr.methods.decomposition.metrics import score_texts
from smallr.methods.decomposition.raw import read_numbered

PUBLISHED = {  # granularity, BLEU, share with a repeated sub-question
    ("BC", "DistilGPT2"): (0.702, 0.444, 0.390),
    ("BC", "GPT-2 small"): (0.724, 0.475, 0.131),
    ("BC", "GPT-2 medium"): (0.739, 0.506, 0.054),
    ("filtered BC", "DistilGPT2"): (0.744, 0.455, 0.281),
    ("filtered BC", "GPT-2 small"): (0.748, 0.487, 0.090),
    ("filtered BC", "GPT-2 medium"): (0.749, 0.507, 0.032),
}


def sets_of(folder: Path) -> dict[tuple[Policy, tuple[tuple[str, str], ...]], list[str]]:
    """Groups the solvers of a policy by the sub-questions that they were asked, which should be the same for all."""
    found: dict[tuple[Policy, tuple[tuple[str, str], ...]], list[str]] = {}
    for solver, policy, path in find_responses(folder):
        texts = tuple(sorted((key_of(row["problem"]), row["questions"]) for row in read_rows(path)))
        found.setdefault((policy, texts), []).append(solver)
    return found


def scores(texts: Iterable[tuple[str, str]], reference: Mapping[str, list[str]]) -> tuple[float, float, float]:
    """Returns mean granularity, mean BLEU and the share with a repeated sub-question."""
    found = [score_texts(read_numbered(text), reference[key]) for key, text in texts]
    return tuple(
        float(np.mean([getattr(each, name) for each in found])) for name in ("granularity", "bleu", "repeated")
    )


def text_scores(folder: Path) -> str:
    """Writes the figures of each set of sub-questions beside the published ones."""
    reference = {key_of(row["problem"]): read_numbered(row["questions"][0]) for row in teacher_rows(folder)}
    lines = []
    for (policy, texts), solvers in sets_of(folder).items():
        if not policy.size:
            continue  # its sub-questions are the reference
        theirs = PUBLISHED.get((policy.method, policy.size))
        ours = " / ".join(f"{value:.3f}" for value in scores(texts, reference))
        said = " / ".join(f"{value:.3f}" for value in theirs) if theirs else "–"
        lines.append([str(policy), ", ".join(solvers), ours, said])
    return markdown(["policy", "asked of", "granularity / BLEU / repeated", "published"], lines)
