"""Grades rationales on two scales from 0 to 9, reads such grades strictly, and derives from them what fits a student.

It is the authors' later way (OmniThought, arXiv 2505.10937), beside the one word easy, medium or hard.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from smallr.agents.agent import Reading
from smallr.core.errors import UserError
from smallr.evals.extraction import after_reasoning
from smallr.sampling.requests import Sample

LOWEST, HIGHEST = 0, 9
SCALES = ("verbosity", "cognitive_difficulty")
UNKNOWN = -1  # in the columns of a row that was not graded
_LINE = re.compile(
    r"[\s*_`-]*(verbosity|cognitive[ _]difficulty)[\s*_`]*[:=][\s*_`]*(-?\d+)(?:\s*/\s*9)?[\s*_`.,;]*", re.I
)


@dataclasses.dataclass(frozen=True)
class Grades:
    """Says how verbose a rationale is and how hard it is to follow, each from 0 to 9."""

    verbosity: int
    cognitive_difficulty: int

    def columns(self, after: bool = False) -> dict[str, int]:
        """Returns the columns of a row; `after` for those of the rationale that CRV has made."""
        return {f"{name}_after" if after else name: getattr(self, name) for name in SCALES}


UNGRADED = Grades(UNKNOWN, UNKNOWN)


@dataclasses.dataclass(frozen=True)
class Fit:
    """Says which grades fit a student.

    Attributes:
      verbosity: lowest and highest that fit.
      cognitive_difficulty: highest that fits.
    """

    verbosity: tuple[int, int]
    cognitive_difficulty: int

    def label(self, grades: Grades) -> str:
        """Returns the word that a critic of words would say: too terse, too involved, or fitting."""
        low, high = self.verbosity
        if grades.verbosity < low:
            return "easy"
        return (
            "hard" if grades.verbosity > high or grades.cognitive_difficulty > self.cognitive_difficulty else "medium"
        )


def fit_of(fields: ConfigDict) -> Fit:
    """Reads `config.grades`.

    Raises:
      UserError: grades out of range.
    """
    highest = fields.cognitive_difficulty
    if not LOWEST <= highest <= HIGHEST:
        raise UserError(f"config.grades.cognitive_difficulty = {highest} must be from {LOWEST} to {HIGHEST}")
    return Fit(_span("config.grades.verbosity", fields.verbosity), highest)


def _span(name: str, span: Sequence[int]) -> tuple[int, int]:
    if len(span) != 2 or not LOWEST <= span[0] <= span[1] <= HIGHEST:
        raise UserError(f"{name} = {tuple(span)} must be the lowest and the highest grade, from {LOWEST} to {HIGHEST}")
    return span[0], span[1]


def read_grades(sample: Sample) -> Reading[Grades]:
    """Reads a reply that is exactly two lines, a grade on each scale."""
    text = after_reasoning(sample.text).strip()
    if not text:
        return None, "empty reply"
    lines = [line for line in text.splitlines() if line.strip()]
    matches = [_LINE.fullmatch(line) for line in lines]
    found = {match[1].lower().replace(" ", "_"): int(match[2]) for match in matches if match}
    if set(found) != set(SCALES):
        return None, "cut off" if sample.finish_reason == "length" else "a grade is missing" if found else "no grades"
    if len(lines) > len(SCALES):
        return None, "several grades" if all(matches) else "more than grades"
    if not all(LOWEST <= value <= HIGHEST for value in found.values()):
        return None, f"a grade beyond {LOWEST} to {HIGHEST}"
    return Grades(**found), ""


@dataclasses.dataclass(frozen=True)
class Selection:
    """Says which verified rows go into the data set `selected`.

    Attributes:
      verbosity, cognitive_difficulty: lowest and highest grade of the rationale that is trained on.
      edges: of bins of cognitive difficulty, each to below the next; the rows of the bins are mixed.
      shares: of the bins.
      match: verbosity must lie in the bin of cognitive difficulty.
    """

    verbosity: tuple[int, int]
    cognitive_difficulty: tuple[int, int]
    edges: tuple[int, ...]
    shares: tuple[int, ...]
    match: bool

    def bin_of(self, grade: int) -> int:
        """Returns the index of a grade's bin; -1 for a grade in none."""
        return next((i for i, span in enumerate(self.spans()) if span[0] <= grade < span[1]), -1)

    def spans(self) -> list[tuple[int, int]]:
        """Returns the bins, each from its first grade to below its second."""
        return list(itertools.pairwise(self.edges))


def selection_of(fields: ConfigDict) -> Selection | None:
    """Reads `config.select`; None where it asks for nothing.

    Raises:
      UserError: grades out of range, edges that do not rise, shares that are not those of the bins.
    """
    if not any((fields.verbosity, fields.cognitive_difficulty, fields.edges, fields.shares, fields.match)):
        return None
    everything = (LOWEST, HIGHEST)
    spans = [_span(f"config.select.{name}", fields[name] or everything) for name in SCALES]
    edges = tuple(fields.edges) or (LOWEST, HIGHEST + 1)
    if len(edges) < 2 or any(low >= high for low, high in itertools.pairwise(edges)):
        raise UserError(f"config.select.edges = {edges} must be two numbers or more that rise")
    shares = tuple(fields.shares) or (1,) * (len(edges) - 1)
    if len(shares) != len(edges) - 1 or min(shares) < 0 or not any(shares):
        raise UserError(
            f"config.select.shares = {shares}: expected one for each of the {len(edges) - 1} bins of config.select.edges"
        )
    return Selection(spans[0], spans[1], edges, shares, fields.match)


def select(rows: Sequence[Mapping[str, object]], selection: Selection) -> tuple[list[int], dict[str, int]]:
    """Selects verified rows by the grades of the rationale that is trained on.

    Of a bin with more rows than its share the first ones are taken, so that the same rows give the same choice.

    Returns:
      Indices of the rows, in their order, and how many were left out for which reason.
    """
    bins: dict[int, list[int]] = {index: [] for index in range(len(selection.shares))}
    left_out = dict.fromkeys(("not graded", *SCALES, "beyond the bins", "not matched", "more than the share"), 0)
    for number, row in enumerate(rows):
        reason, index = _placed(Grades(*(int(row[f"{name}_after"]) for name in SCALES)), selection)
        if reason:
            left_out[reason] += 1
        else:
            bins[index].append(number)
    unit = min((len(bins[i]) / share for i, share in enumerate(selection.shares) if share), default=0)
    kept = sorted(number for i, share in enumerate(selection.shares) for number in bins[i][: round(unit * share)])
    left_out["more than the share"] = sum(map(len, bins.values())) - len(kept)
    return kept, {reason: count for reason, count in left_out.items() if count}


def _placed(grades: Grades, selection: Selection) -> tuple[str, int]:
    """Returns why a row is left out, or its bin."""
    if UNKNOWN in (grades.verbosity, grades.cognitive_difficulty):
        return "not graded", -1
    for name in SCALES:
        low, high = getattr(selection, name)
        if not low <= getattr(grades, name) <= high:
            return name, -1
    index = selection.bin_of(grades.cognitive_difficulty)
    if index < 0:
        return "beyond the bins", -1
    return ("not matched" if selection.match and selection.bin_of(grades.verbosity) != index else ""), index
