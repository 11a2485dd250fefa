"""Measures whether the rationale of an answer leads to that answer, and whether disagreement finds errors.

The rationale is read alone, without the statement of the answer: by rule (the benchmark's own extraction and grader), or by
the model, which is shown the rationale and nothing else. What it comes to is graded against the answer that was given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from smallr.core.errors import UserError
from smallr.evals.graders.base import Grader, Job
from smallr.evals.records import Record
from smallr.evals.statistics import Estimate, bootstrap, pass_at_1
from smallr.evals.trust.parts import check_order, split

READERS = ("rule", "model")
# What became of an answer whose two parts were to be compared.
AGREES, DISAGREES, UNREAD, NO_RATIONALE, NO_ANSWER = "agrees", "disagrees", "unread", "no rationale", "no answer"
STATES = (AGREES, DISAGREES, UNREAD, NO_RATIONALE, NO_ANSWER)


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Says whether a rationale leads to the answer that was given with it.

    Attributes:
      state: one of STATES. `unread`: the rationale leads to no answer, or to none that can be told.
      from_rationale: the answer that it leads to.
    """

    state: str
    from_rationale: str | None = None

    @property
    def agrees(self) -> bool | None:
        """Returns whether they agree; None where that cannot be said."""
        return {AGREES: True, DISAGREES: False}.get(self.state)


def compare(
    rationales: Sequence[str],
    answers: Sequence[str | None],
    grader: Grader,
    rows: Sequence[Mapping[str, Any]] | None = None,
) -> list[Agreement]:
    """Compares what each rationale comes to with the answer given.

    Args:
      rationales: texts whose answers are read: rationales, or what the model replied when it was shown one.
      answers: that were given, as a grader extracts them; None for none.
      grader: of the benchmark.
      rows: of the benchmark, for graders that need more of it, such as the texts of options.
    """
    states = [
        Agreement(NO_ANSWER if answer is None else NO_RATIONALE if not rationale.strip() else UNREAD)
        for rationale, answer in zip(rationales, answers, strict=True)
    ]
    read = [index for index, agreement in enumerate(states) if agreement.state == UNREAD]
    jobs = [Job(rationales[index], answers[index], rows[index] if rows else {}) for index in read]
    for index, verdict in zip(read, grader.grade(jobs), strict=True):
        if verdict.extracted is not None:
            states[index] = Agreement(AGREES if verdict.correct else DISAGREES, verdict.extracted)
    return states


def of_answer(text: str, order: str, separator: str, grader: Grader) -> Agreement:
    """Says of one answer, by rule, whether its rationale leads to it: for `smallr generate` and `smallr serve`.

    Args:
      text: that the model wrote.
      order: see `parts.split`.
      separator: see there.
      grader: of the benchmark that says what an answer is.
    """
    parts = split(text, order, separator)
    (verdict,) = grader.grade([Job(parts.answer, "0")])
    (found,) = compare([parts.rationale], [verdict.extracted], grader)
    return found


def judge(order: str, separator: str, grader: Grader) -> Callable[[str, object], bool | None]:
    """Returns `of_answer` in the form that rates single answers: (text, the answer found in it) -> whether they agree."""
    return lambda text, _: of_answer(text, order, separator, grader).agrees


def reading_prompt(template: str, question: str, rationale: str) -> str:
    """Returns what the model is asked about a rationale; its braces stay as they are."""
    return template.replace("{question}", question).replace("{rationale}", rationale)


def check(config: Mapping[str, Any], *, runs_code: bool) -> None:
    """Refuses settings that would fail late.

    Args:
      config: the fields `agreement` of an evaluation.
      runs_code: whether the benchmark's answers are programs.

    Raises:
      UserError: names the field.
    """
    check_order(config["order"])
    if config["reader"] not in READERS:
        raise UserError(f"config.agreement.reader = {config['reader']!r} must be one of: {', '.join(READERS)}")
    if "{rationale}" not in config["prompt"]:
        raise UserError("config.agreement.prompt lacks {rationale}, where the rationale is put")
    if runs_code:
        raise UserError(
            "config.agreement: an answer of this benchmark is a program, to which no rationale can be compared"
        )


def report(records: Sequence[Record], order: str, reader: str) -> dict[str, Any]:
    """Returns the figures of agreement, as JSON holds them.

    Args:
      records: of an evaluation, with `agreement` (one of STATES) and `correct`.
      order: of rationale and answer.
      reader: one of READERS.

    Returns:
      `rate`: of agreement among the answers that were compared. `accuracy`: of each state that occurs. `errors`: how well
      disagreement finds wrong answers among those compared: precision, recall and the area under the ROC curve.
    """
    known = [record for record in records if record.get("agreement")]
    compared = [record for record in known if record["agreement"] in (AGREES, DISAGREES)]
    disagreeing = [record for record in compared if record["agreement"] == DISAGREES]
    wrong = [record for record in compared if not record["correct"]]
    return {
        "order": order,
        "reader": reader,
        "counts": {state: sum(record["agreement"] == state for record in known) for state in STATES},
        "rate": _share(compared, lambda record: record["agreement"] == AGREES),
        "accuracy": {
            state: _share(members, lambda record: record["correct"])
            for state in STATES
            if (members := [record for record in known if record["agreement"] == state])
        },
        "errors": {
            "precision": _share(disagreeing, lambda record: not record["correct"]),
            "recall": _share(wrong, lambda record: record["agreement"] == DISAGREES),
            "auroc": _auroc(compared),
        },
    }


def _share(records: Sequence[Record], holds: Any) -> dict[str, Any]:
    """Returns the share of records for which something holds, with Wilson's interval clustered by question."""
    grouped: dict[str, list[float]] = {}
    for record in records:
        grouped.setdefault(record["id"], []).append(float(holds(record)))
    estimate: Estimate = pass_at_1(list(grouped.values()))
    if not records:
        return {"value": None, "interval": None, "count": 0}
    return {"value": estimate.value, "interval": list(estimate.interval()), "count": len(records)}


def _auroc(records: Sequence[Record]) -> dict[str, Any]:
    """Returns the area under the ROC curve of "disagrees" as a sign of "wrong", with a bootstrap interval over questions.

    Of a sign that is there or not it is (1 + TPR - FPR) / 2: a tie counts half.
    """
    cells: dict[str, np.ndarray] = {}
    for record in records:
        cell = cells.setdefault(record["id"], np.zeros(4))
        cell[2 * (not record["correct"]) + (record["agreement"] == DISAGREES)] += 1
    counts = np.array(list(cells.values())).reshape(-1, 4)
    value = auroc_of_counts(counts.sum(0))
    if np.isnan(value):
        return {"value": None, "interval": None, "count": len(records)}
    return {"value": float(value), "interval": list(bootstrap(counts, auroc_of_counts)), "count": len(records)}


def auroc_of_counts(counts: np.ndarray) -> np.ndarray:
    """Computes the area of counts [..., 4]: right and agreeing, right and not, wrong and agreeing, wrong and not.

    It is NaN without a right or without a wrong answer.
    """
    right, wrong = counts[..., 0] + counts[..., 1], counts[..., 2] + counts[..., 3]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (1 + counts[..., 3] / wrong - counts[..., 1] / right) / 2


def lines(figures: Mapping[str, Any]) -> list[str]:
    """Returns the figures in words, a line each."""
    counts = figures["counts"]
    listed = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    found = [f"rationale and answer ({figures['order']}, read by {figures['reader']}): {listed}"]
    found.append(f"  agreement {shown(figures['rate'])}")
    found += [f"  right where {state}: {shown(value)}" for state, value in figures["accuracy"].items()]
    errors = figures["errors"]
    found.append(
        f"  disagreement as a sign of error: precision {shown(errors['precision'])}, recall {shown(errors['recall'])}, "
        f"AUROC {shown(errors['auroc'])}"
    )
    return found


def shown(value: Mapping[str, Any]) -> str:
    """Writes a figure with its interval; a dash for one that is not known."""
    if value["value"] is None:
        return "–"
    low, high = value["interval"]
    return f"{value['value']:.3f} ({low:.3f} … {high:.3f})"
