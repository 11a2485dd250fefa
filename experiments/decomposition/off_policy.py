"""Asks whether logged responses tell which decomposition policy is best, before any of its own questions is answered.

    python -m experiments.decomposition.off_policy --data=FOLDER --out=FOLDER

FOLDER is that of `published.py`. Some policies are the log: their sub-questions with the solver's verdicts. The others are
candidates: their sub-questions alone. Their accuracy is estimated from the log and compared with the real one, which the
files hold too. The files have one set of sub-questions of each policy and problem, and no propensities, so two stand-ins are
used. *Same text*: decoding took the likeliest token, so a candidate's propensity is 1 for its own text and the log's is the
share of its policies that wrote it; nothing is known of texts that the log lacks. *Learnt ratio*: the odds of a classifier
that tells the candidate's sub-questions from the log's by features. Classifiers and Q (the probability of a right answer by
the same features) are learnt on one half of the problems and used on the other, both ways.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import app, flags
from jaxtyping import Bool, Float, Int
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from experiments.decomposition.published import grade
from experiments.decomposition.released import SOLVERS, Policy, find_responses, gold_answers, key_of, read_rows
from smallr.core.comparison import markdown
from smallr.core.errors import UserError
from smallr.evals.off_policy import (
    Interval,
    Logged,
    bootstrap,
    direct_method,
    doubly_robust,
    effective_size,
    weighted_doubly_robust,
    weighted_importance_sampling,
)

LOGS = {"BC": ("BC",), "ChatGPT's own": ("ChatGPT's own",)}  # name -> methods whose responses are the log
_LARGEST = 20.0  # a learnt ratio; beyond it the classifier extrapolates


@dataclasses.dataclass(frozen=True)
class Written:
    """Holds what a policy wrote for each problem, and what a solver made of it."""

    texts: list[str]
    right: Bool[np.ndarray, " N"]
    features: Float[np.ndarray, "N F"]


Responses = Mapping[Policy, Written]


def features(problem: str, text: str) -> list[float]:
    """Describes sub-questions by numbers that could tell useful ones from useless ones, and the problem by its size."""
    lines = [re.sub(r"^Q\d+:\s*", "", line).lower() for line in text.splitlines() if line.strip()]
    words = [set(re.findall(r"[a-z]+", line)) for line in lines] or [set()]
    stated = set(re.findall(r"[a-z]+", problem.lower()))
    asked = set(re.findall(r"[a-z]+", re.split(r"(?<=[.!?])\s", problem.lower().strip())[-1]))
    numbers, given = re.findall(r"\d+", text.replace("Q", "")), set(re.findall(r"\d+", problem))
    last, every = words[-1], set().union(*words)
    shared = len(last & asked)
    return [
        len(lines),
        len(lines) / (1 + len(given)),
        float(np.mean([len(each) for each in words])),
        len(lines) - len(set(lines)),
        len(every & stated) / max(len(every), 1),
        len(every & stated) / max(len(stated), 1),
        2 * shared / max(len(last) + len(asked), 1),
        max(len(each & asked) / max(len(asked), 1) for each in words),
        sum(number not in given for number in numbers),
        float(np.mean([line.endswith("?") for line in lines])) if lines else 0.0,
        sum(" total" in line or "altogether" in line for line in lines),
        len(problem.split()),
        len(given),
        problem.count("."),
        problem.count("%") + problem.count("/"),
    ]


def read_responses(folder: Path, solver: str, golds: Mapping[str, str]) -> Responses:
    """Reads the responses of a solver, in one order of the problems.

    Raises:
      UserError: a policy lacks some of the problems.
    """
    found, problems = {}, None
    for name, policy, path in find_responses(folder):
        if name != solver:
            continue
        rows = sorted(read_rows(path), key=lambda row: key_of(row["problem"]))
        keys = [key_of(row["problem"]) for row in rows]
        if keys != (problems := problems or keys):
            raise UserError(f"{path.name}: other problems than those of the policies before")
        described = np.array([features(row["problem"], row["questions"]) for row in rows])
        found[policy] = Written(
            [" ".join(row["questions"].split()) for row in rows], np.array(grade(rows, golds).right), described
        )
    return found


def halves(count: int, seed: int) -> list[tuple[Int[np.ndarray, " A"], Int[np.ndarray, " B"]]]:
    """Cuts problems in two: (learn on, use on) both ways."""
    order = np.random.default_rng(seed).permutation(count)
    a, b = order[: count // 2], order[count // 2 :]
    return [(a, b), (b, a)]


def classifier() -> object:
    """Returns an untrained classifier by features."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))


def learnt_q(log: Sequence[Written], seed: int) -> Callable[[Written], Float[np.ndarray, " N"]]:
    """Learns the probability of a right answer from the log, and returns how to apply it out of sample."""
    models = []
    for learn, use in halves(len(log[0].texts), seed):
        inputs = np.concatenate([each.features[learn] for each in log])
        models.append((use, classifier().fit(inputs, np.concatenate([each.right[learn] for each in log]))))

    def apply(written: Written) -> Float[np.ndarray, " N"]:
        out = np.zeros(len(written.texts))
        for use, model in models:
            out[use] = model.predict_proba(written.features[use])[:, 1]
        return out

    return apply


def learnt_ratio(candidate: Written, log: Sequence[Written], seed: int) -> Float[np.ndarray, "L N"]:
    """Estimates pi / mu of each logged text as the odds that the candidate wrote it, out of sample."""
    ratio = np.zeros((len(log), len(candidate.texts)))
    for learn, use in halves(len(candidate.texts), seed):
        inputs = np.concatenate([candidate.features[learn], *(each.features[learn] for each in log)])
        label = np.arange(len(inputs)) < len(learn)
        model = classifier().fit(inputs, label)
        for row, each in enumerate(log):
            share = np.minimum(model.predict_proba(each.features[use])[:, 1], 1 - 1e-9)
            ratio[row, use] = np.minimum(len(log) * share / (1 - share), _LARGEST)
    return ratio


def same_text(candidate: Written, log: Sequence[Written]) -> Float[np.ndarray, "L N"]:
    """Returns pi / mu of each logged text where every policy always writes what it wrote here."""
    equal = np.array([[a == b for a, b in zip(each.texts, candidate.texts, strict=True)] for each in log], float)
    return equal * len(log) / np.maximum(equal.sum(axis=0), 1)


ESTIMATES = {  # name in the tables -> ratio, estimate
    "WIS, same text": ("same", weighted_importance_sampling),
    "WIS, learnt ratio": ("learnt", weighted_importance_sampling),
    "direct method": ("learnt", direct_method),
    "DR, same text": ("same", doubly_robust),
    "DR, learnt ratio": ("learnt", weighted_doubly_robust),
}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Holds what can be said of a policy from a log: one row a problem and logged policy, problems first."""

    policy: Policy
    right: Bool[np.ndarray, " N"]
    logged: Mapping[str, Logged]
    covered: float

    def estimate(self, name: str, problems: Int[np.ndarray, " M"]) -> float:
        """Returns an estimate over some problems."""
        ratio, function = ESTIMATES[name]
        policies = len(self.logged[ratio].reward) // len(self.right)
        return function(self.logged[ratio].take((problems[:, None] * policies + np.arange(policies)).ravel()))


def candidates(responses: Responses, methods: Sequence[str], seed: int = 0) -> list[Candidate]:
    """Lays out the log for each policy that is not in it."""
    log = [written for policy, written in responses.items() if policy.method in methods]
    model, made = learnt_q(log, seed), []
    reward = np.stack([each.right for each in log]).astype(float)
    q = np.stack([model(each) for each in log])
    for policy, written in responses.items():
        if policy.method in methods:
            continue
        value = np.broadcast_to(model(written), q.shape)  # the policy always writes this text, so V(x) = Q(x, it)
        same = same_text(written, log)
        ratios = {"same": same, "learnt": learnt_ratio(written, log, seed)}
        logged = {
            name: Logged.of_bandit(*(array.T.ravel() for array in (reward, ratio, q, value)))
            for name, ratio in ratios.items()
        }
        made.append(Candidate(policy, written.right, logged, float((same.sum(axis=0) > 0).mean())))
    return made


def rank_correlation(found: Sequence[Candidate], name: str, resamples: int) -> Interval:
    """Computes Spearman's correlation of estimates with real accuracies, and its interval over problems."""

    def statistic(problems: Int[np.ndarray, " M"]) -> float:
        estimates = [each.estimate(name, problems) for each in found]
        if np.isnan(estimates).any():
            return float("nan")
        return float(stats.spearmanr(estimates, [each.right[problems].mean() for each in found]).statistic)

    return bootstrap(statistic, range(len(found[0].right)), resamples=resamples)


def ceiling(found: Sequence[Candidate], splits: int = 200) -> Interval:
    """Computes Spearman's correlation of real accuracies on one half of the problems with those on the other."""
    count, values = len(found[0].right), []
    for seed in range(splits):
        (a, b), _ = halves(count, seed)
        first, second = ([each.right[half].mean() for each in found] for half in (a, b))
        values.append(float(stats.spearmanr(first, second).statistic))
    return Interval(float(np.mean(values)), *(float(edge) for edge in np.quantile(values, [0.025, 0.975])))


def ordered(found: Sequence[Candidate], name: str) -> tuple[int, int]:
    """Counts the pairs of one size that the estimate orders as the real accuracies do, and those that differ at all."""
    every, right, pairs = np.arange(len(found[0].right)), 0, 0
    for a, b in itertools.combinations(found, 2):
        real = a.right.mean() - b.right.mean()
        if a.policy.size == b.policy.size and real:
            pairs += 1
            right += (a.estimate(name, every) - b.estimate(name, every)) * real > 0
    return right, pairs


def _shown(interval: Interval, scale: float = 1.0, digits: int = 2) -> str:
    if np.isnan(interval.value):
        return "–"
    low, high = scale * interval.low, scale * interval.high
    return f"{scale * interval.value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table_of(found: Sequence[Candidate], resamples: int) -> str:
    """Writes real accuracy and estimates in percent of each candidate, the share of its texts in the log and effective sizes."""
    every, lines = np.arange(len(found[0].right)), []
    for each in found:
        right = each.right
        real = bootstrap(lambda rows, right=right: float(right[rows].mean()), every, resamples=resamples)
        cells = [
            _shown(bootstrap(lambda rows, e=each, n=name: e.estimate(n, rows), every, resamples=resamples), 100, 1)
            for name in ESTIMATES
        ]
        size = effective_size(each.logged["learnt"])
        lines.append([str(each.policy), _shown(real, 100, 1), *cells, f"{100 * each.covered:.0f} %", f"{size:.0f}"])
    return markdown(["candidate", "real", *ESTIMATES, "texts in the log", "effective rows, learnt ratio"], lines)


def size_alone(found: Sequence[Candidate], responses: Responses) -> str:
    """Computes Spearman's correlation of real accuracies with those of BC of the same size, which needs no estimate."""
    known = {policy.size: written.right.mean() for policy, written in responses.items() if policy.method == "BC"}
    guess = [known[each.policy.size] for each in found]
    return f"{stats.spearmanr(guess, [each.right.mean() for each in found]).statistic:.2f}"


def ranks_of(found: Sequence[Candidate], resamples: int) -> list[dict[str, str]]:
    """Returns for each estimate how it ranks the candidates, how far it is off, its choice and what the choice costs."""
    every, best = np.arange(len(found[0].right)), max(each.right.mean() for each in found)
    rows = []
    for name in ESTIMATES:
        estimates = np.array([each.estimate(name, every) for each in found])
        if np.isnan(estimates).any():
            rows.append({"estimate": name, "Spearman": "no text in the log"})
            continue
        choice, (right, pairs) = found[int(np.argmax(estimates))], ordered(found, name)
        off = np.abs(estimates - [each.right.mean() for each in found]).mean()
        rows.append(
            {
                "estimate": name,
                "Spearman": _shown(rank_correlation(found, name, resamples)),
                "pairs of one size": f"{right}/{pairs}",
                "mean error": f"{100 * off:.1f}",
                "choice": str(choice.policy),
                "regret": f"{100 * (best - choice.right.mean()):.1f}",
            }
        )
    return rows


def consistency(responses: Responses) -> tuple[int, int]:
    """Counts pairs of responses to the same text, and those whose verdicts differ: what the solver itself adds in noise."""
    differ = pairs = 0
    for a, b in itertools.combinations(responses.values(), 2):
        same = np.array([x == y for x, y in zip(a.texts, b.texts, strict=True)])
        pairs += int(same.sum())
        differ += int((a.right != b.right)[same].sum())
    return differ, pairs


def report(folder: Path, solvers: Sequence[str], resamples: int) -> str:
    """Writes the page.

    Raises:
      UserError: a solver that has no responses.
    """
    golds, present = gold_answers(folder), {solver for solver, _, _ in find_responses(folder)}
    if missing := [solver for solver in solvers if solver not in present]:
        raise UserError(f"--solvers: {missing[0]!r} must be one of: {', '.join(sorted(present))}")
    parts = ["# Off-policy evaluation of the released responses", ""]
    for solver in solvers:
        responses = read_responses(folder, solver, golds)
        differ, pairs = consistency(responses)
        parts += [f"## Solver {solver}", "", f"Verdicts on the same text differ in {differ} of {pairs} pairs.", ""]
        for log, methods in LOGS.items():
            found = candidates(responses, methods)
            students = [each for each in found if each.policy.size]
            half, ranks = ceiling(students), ranks_of(students, resamples)
            names = list(max(ranks, key=len))
            parts += [f"### The log is {log}", "", table_of(found, resamples)]
            parts += [f"The {len(students)} students among them, ranked; errors and regret in points:", ""]
            parts += [markdown(names, [[row.get(name, "–") for name in names] for row in ranks])]
            parts += [f"Real accuracies of one half of the problems against the other half: Spearman {_shown(half)}."]
            parts += [f"The size alone (real accuracy of BC of that size): {size_alone(students, responses)}.", ""]
    return "\n".join(parts)


def main(argv: list[str]) -> None:
    """Prints the page, and writes it where asked."""
    del argv
    try:
        page = report(Path(DATA.value), SOLVERS_ASKED.value, RESAMPLES.value)
    except UserError as error:
        raise SystemExit(f"smallr: {error}") from None
    print(page)
    if OUT.value:
        Path(OUT.value).mkdir(parents=True, exist_ok=True)
        (Path(OUT.value) / "off_policy.md").write_text(page)


if __name__ == "__main__":
    DATA = flags.DEFINE_string("data", None, "Folder of the released responses", required=True)
    OUT = flags.DEFINE_string("out", None, "Folder for off_policy.md")
    SOLVERS_ASKED = flags.DEFINE_list("solvers", list(SOLVERS), "Of these, separated by commas")
    RESAMPLES = flags.DEFINE_integer("resamples", 400, "Resamples of the problems for an interval")
    app.run(main)
