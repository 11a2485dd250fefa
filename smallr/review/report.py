"""Reports what a review has found: how much is accepted, how far people and machines agree, how much may still be wrong."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from smallr.data.reviewed import ACCEPTED, DISPUTED, EDITED, REJECTED, UNSURE
from smallr.review.decisions import CHANGED, OPEN, Decided, Outcome, outcome, standing
from smallr.review.folders import ReviewSet
from smallr.review.queues import audit_order
from smallr.review.rows import Row
from smallr.review.statistics import Kappa, cohens_kappa, errors_of_rest, rows_needed, share

_DECIDED = (ACCEPTED, EDITED, REJECTED, DISPUTED, UNSURE)
WIDTHS = (0.05, 0.02, 0.01)


def make_report(reviewed: ReviewSet, decided: Decided) -> dict[str, Any]:
    """Computes all figures, in JSON's types."""
    rows = reviewed.rows
    outcomes = [outcome(row, decided) for row in rows]
    known = {row.key for row in rows}
    gone = sum(key not in known for own in decided.values() for key in own)
    return {
        "kind": reviewed.kind.name,
        "rows": len(rows),
        "status": {name: sum(each.status == name for each in outcomes) for name in (*_DECIDED, CHANGED, OPEN)},
        "outdated": sum(len(each.outdated) for each in outcomes),
        "gone": gone,
        "reviewers": {name: _count(rows, decided, name) for name in decided},
        "by_source": _acceptance(rows, outcomes, lambda row: row.source),
        "by_verdict": _acceptance(rows, outcomes, lambda row: row.verdict or "(none)"),
        "between_reviewers": _between(rows, decided),
        "with_verdict": _with_verdict(rows, decided),
        "rest": _rest(rows, outcomes, decided),
    }


def _count(rows: Sequence[Row], decided: Decided, reviewer: str) -> int:
    return sum(reviewer in standing(row, decided) for row in rows)


def _acceptance(rows: Sequence[Row], outcomes: Sequence[Outcome], group: Callable[[Row], str]) -> list[dict[str, Any]]:
    """Counts outcomes by group; the rate is of rows that are accepted as the machine wrote them, among those decided on."""
    groups: dict[str, Counter[str]] = {"all": Counter()}
    for row, found in zip(rows, outcomes, strict=True):
        if found.status in _DECIDED:
            groups["all"][found.status] += 1
            groups.setdefault(f"= {group(row)}", Counter())[found.status] += 1
    found = []
    for name, counts in groups.items():
        rate = share(counts[ACCEPTED], counts.total())
        low, high = rate.interval()
        entry = {
            "group": name.removeprefix("= "),
            "decided": counts.total(),
            **{each: counts[each] for each in _DECIDED},
        }
        found.append({**entry, "rate": _finite(rate.value), "low": low, "high": high})
    return found


def _between(rows: Sequence[Row], decided: Decided) -> list[dict[str, Any]]:
    """Compares each two reviewers on the rows of which both are sure: accepted, edited or rejected."""
    found = []
    sure = {
        name: {
            row.key: each.decision
            for row in rows
            if (each := standing(row, decided).get(name)) is not None and each.decision != UNSURE
        }
        for name in decided
    }
    for first, second in itertools.combinations(decided, 2):
        shared = [key for key in sure[first] if key in sure[second]]
        if shared:
            kappa = cohens_kappa([sure[first][key] for key in shared], [sure[second][key] for key in shared])
            found.append({"first": first, "second": second, **_of_kappa(kappa)})
    return found


def _with_verdict(rows: Sequence[Row], decided: Decided) -> list[dict[str, Any]]:
    """Compares each reviewer with the agent: accepted as it stands, or not; approved, or not."""
    found = []
    for name in decided:
        pairs = [
            (each.decision == ACCEPTED, row.approved)
            for row in rows
            if row.approved is not None
            and (each := standing(row, decided).get(name)) is not None
            and each.decision != UNSURE
        ]
        if pairs:
            person, agent = zip(*pairs, strict=True)
            counts = Counter(pairs)
            entry = {
                "first": name,
                "second": "agent's verdict",
                "approved_but_not_accepted": counts[False, True],
                "accepted_but_not_approved": counts[True, False],
            }
            found.append({**entry, **_of_kappa(cohens_kappa(person, agent))})
    return found


def _of_kappa(kappa: Kappa) -> dict[str, Any]:
    known = not math.isnan(kappa.value)
    low, high = kappa.interval() if known else (None, None)
    return {
        "rows": kappa.rows,
        "agreement": kappa.agreement,
        "kappa": _finite(kappa.value),
        "low": low,
        "high": high,
    }


def _rest(rows: Sequence[Row], outcomes: Sequence[Outcome], decided: Decided) -> dict[str, Any] | None:
    """Estimates the errors of the rest from the audit sample; None without one.

    The sample is the longest beginning of the order of some seed that is decided on without a hole, so one that was left
    half-way is still random. Whatever is not accepted as it stands counts as wrong.
    """
    seeds = {each.audit for own in decided.values() for each in own.values() if each.audit is not None}
    samples = []
    for seed in sorted(seeds):
        order = audit_order(rows, seed)
        done = list(itertools.takewhile(lambda index: outcomes[index].status in _DECIDED, order))
        samples.append((len(done), seed, done))
    checked, seed, sample = max(samples, key=lambda each: each[0], default=(0, 0, []))
    if not checked:
        return None
    found = sum(outcomes[index].status != ACCEPTED for index in sample)
    known = sum(each.status in _DECIDED and each.status != ACCEPTED for each in outcomes)
    number = sum(each.status in _DECIDED for each in outcomes)
    rest = errors_of_rest(found, checked, known, number, len(rows))
    more = {str(width): rows_needed(found, checked, len(rows), width) for width in WIDTHS}
    return {
        "seed": seed,
        "checked": checked,
        "found": found,
        "rows": rest.rows,
        "wrong": rest.wrong,
        "low": rest.low,
        "high": rest.high,
        "more_rows_for_width": more,
    }


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value


def as_markdown(report: Mapping[str, Any]) -> str:
    """Returns a report for people."""
    counts = ", ".join(f"{count} {name}" for name, count in report["status"].items() if count)
    lines = [f"# Review of {report['rows']} {report['kind']}", "", f"{counts}."]
    if report["outdated"]:
        lines.append(
            f"{report['outdated']} decisions are on another content than the rows have now; they do not count."
        )
    if report["gone"]:
        lines.append(f"{report['gone']} decisions are on rows that are no longer there.")
    lines += ["", *_rest_lines(report["rest"])]
    for title, name in (("source", "by_source"), ("agent's verdict", "by_verdict")):
        lines += ["", f"## Accepted as written, by {title}", "", *_acceptance_table(report[name], title)]
    for title, name in (("Between reviewers", "between_reviewers"), ("Person and agent", "with_verdict")):
        if report[name]:
            lines += ["", f"## {title}", "", *_kappa_table(report[name])]
    return "\n".join(lines) + "\n"


def _rest_lines(rest: Mapping[str, Any] | None) -> list[str]:
    if rest is None:
        return [
            "No audit sample was reviewed, so nothing is known of the rows that nobody has decided on: "
            "`smallr review DIR --sample=100` draws one."
        ]
    rows = rest["rows"]
    said = f"Audit sample (seed {rest['seed']}): {rest['found']} of {rest['checked']} rows are not accepted as written."
    if not rows:
        return [said, "Every row is decided on."]
    shares = [f"{100 * rest[name] / rows:.1f} %" for name in ("wrong", "low", "high")]
    more = ", ".join(
        f"{count} for ± {float(width):.0%}" for width, count in rest["more_rows_for_width"].items() if count
    )
    return [
        said,
        f"Of the {rows} rows without a decision about {rest['wrong']:.0f} are wrong ({shares[0]}; 95 % interval "
        f"{rest['low']} to {rest['high']}, {shares[1]} to {shares[2]}).",
        f"More rows of the sample to check: {more}." if more else "The rate is known to within 1 %.",
    ]


def _acceptance_table(entries: Sequence[Mapping[str, Any]], title: str) -> list[str]:
    lines = [f"| {title} | decided | {' | '.join(_DECIDED)} | accepted | 95 % interval |", "| --- " * 9 + "|"]
    for each in entries:
        counts = " | ".join(str(each[name]) for name in _DECIDED)
        rate = "–" if each["rate"] is None else f"{each['rate']:.1%}"
        cells = f"{_cell(each['group'])} | {each['decided']} | {counts} | {rate}"
        lines.append(f"| {cells} | {each['low']:.1%} – {each['high']:.1%} |")
    return lines


def _kappa_table(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| first | second | rows | agreement | kappa | 95 % interval |", "| --- " * 6 + "|"]
    for each in entries:
        known = each["kappa"] is not None
        kappa = f"{each['kappa']:.2f} | {each['low']:.2f} – {each['high']:.2f}" if known else "not defined | –"
        lines.append(f"| {each['first']} | {each['second']} | {each['rows']} | {each['agreement']:.1%} | {kappa} |")
        if "approved_but_not_accepted" in each:
            approved, accepted = each["approved_but_not_accepted"], each["accepted_but_not_approved"]
            lines.append(f"| | approved, not accepted: {approved}; accepted, not approved: {accepted} | | | | |")
    return lines


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split()) or "(none)"
