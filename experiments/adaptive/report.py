"""Reports the runs of `answer_first`: one table, two plots, and a verdict on each claim of the paper."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from experiments.adaptive.policies import Outcomes, abstaining, at_rate, bootstrap, choose, oracle, tokens_saved, unsure
from experiments.adaptive.students import Written
from experiments.adaptive.teacher_rows import Row
from smallr.core.comparison import Mean, can_plot, markdown, mean, write_csv
from smallr.core.stages import Stage, Stages


@dataclasses.dataclass(frozen=True)
class Arm:
    """Holds one way to answer, on the same test questions for every seed.

    Attributes:
      name: of the arm.
      outcomes: of each seed and question.
      nll: of the answers given, nats a token; NaN where there is none.
      seconds, cpu_seconds: an answer, measured; NaN for a policy that was computed from the outcomes of others.
    """

    name: str
    outcomes: Outcomes
    nll: Float[np.ndarray, "seeds questions"]
    seconds: float = float("nan")
    cpu_seconds: float = float("nan")


def metrics_of(written: Written, rows: Sequence[Row]) -> dict[str, float]:
    """Computes accuracy, over all questions and of each task; tokens and time an answer."""
    tasks = np.array([row.task for row in rows])
    by_task = {f"accuracy/{task}": float(written.correct[tasks == task].mean()) for task in dict.fromkeys(tasks)}
    return {
        "accuracy": float(written.correct.mean()),
        **by_task,
        "tokens": float(written.tokens.mean()),
        "seconds_per_answer": written.seconds / len(rows),
        "cpu_seconds_per_answer": written.cpu_seconds / len(rows),
    }


def early_stop(stopped: Written, whole: Written) -> dict[str, float]:
    """Returns whether decoding on behind the answer changes it, and what that costs."""
    same = [a.strip() == b.partition("-->")[0].strip() for a, b in zip(stopped.texts, whole.texts, strict=True)]
    return {"early_stop_same": float(np.mean(same)), "tokens_without_stop": float(whole.tokens.mean())}


def arm(name: str, grid: Stages, runs: Sequence[Stage]) -> Arm | None:
    """Returns the finished runs of an arm; None if there is none."""
    folders = [grid.folder(run) for run in runs if grid.is_done(run)]
    if not folders:
        return None
    lines = [[json.loads(line) for line in (f / "written.jsonl").read_text().splitlines()] for f in folders]

    def values(field: str) -> np.ndarray:
        return np.array(
            [[np.nan if line[field] is None else line[field] for line in of_seed] for of_seed in lines], float
        )

    results = [grid.value(run) for run in runs if grid.is_done(run)]
    return Arm(
        name,
        Outcomes(values("correct"), values("tokens")),
        values("nll"),
        float(np.median([result["seconds_per_answer"] for result in results])),
        float(np.median([result["cpu_seconds_per_answer"] for result in results])),
    )


def derived(pre: Arm, post: Arm) -> list[Arm]:
    """Returns policies over the two students, from what each did with each question."""
    answer, think = post.outcomes, pre.outcomes
    nan = np.full_like(answer.correct, np.nan)
    arms = []
    known = post.nll[np.isfinite(post.nll)]
    for share in (0.25, 0.5, 0.75):
        policy = unsure(answer, think, post.nll, float(np.quantile(known, 1 - share)) if len(known) else 0.0)
        arms.append(Arm(f"answer, think again if unsure ({share:.0%})", policy, nan))
        arms.append(Arm(f"random, thinks about {share:.0%}", at_rate(answer, think, share), nan))
    return [*arms, Arm("oracle", oracle(answer, think), nan)]


def kept(name: str, grid: Stages, runs: Sequence[Stage], file: str, suffix: str = "") -> Arm:
    """Returns an arm of `answer_first_adaptive`, from what the runs have written."""
    found = [json.loads((grid.folder(run) / file).read_text()) for run in runs]
    outcomes = Outcomes(*(np.array([each[field] for each in found], float) for field in ("correct", "tokens")))
    seconds = [grid.value(run)[f"seconds_per_answer{suffix}"] for run in runs]
    return Arm(name, outcomes, np.full_like(outcomes.correct, np.nan), float(np.median(seconds)))


@dataclasses.dataclass(frozen=True)
class Deciding:
    """Holds the arms around one student of both orders.

    Attributes:
      answer, think: always-post and always-pre.
      modules: each with random decisions at the same rate.
      best: the oracle.
    """

    answer: Arm
    think: Arm
    modules: tuple[tuple[Arm, Arm], ...]
    best: Arm

    @property
    def all(self) -> list[Arm]:
        """Returns the arms in the order of the table."""
        return [self.think, self.answer, *(each for pair in self.modules for each in pair), self.best]


def deciding(grid: Stages, runs: Sequence[Stage]) -> Deciding | None:
    """Returns what the finished runs of the adaptive arms say; None without any."""
    by_arm = {
        name: [run for run in runs if run.settings["arm"] == name and grid.is_done(run)]
        for name in ("both", "router", "prompts")
    }
    if not by_arm["both"]:
        return None
    answer = kept("always-post (student of both orders)", grid, by_arm["both"], "always-answer.json", "/answer")
    think = kept("always-pre (student of both orders)", grid, by_arm["both"], "always-think.json", "/think")
    modules = []
    for name, title in (("router", "adaptive: router"), ("prompts", "adaptive: mode prompts")):
        if len(by_arm[name]) == len(by_arm["both"]):
            rate = np.array([[grid.value(run)["share"]] for run in by_arm[name]])
            chance = at_rate(answer.outcomes, think.outcomes, rate)
            random = Arm(f"random, as often as the {title.partition(': ')[2]} ({rate.mean():.0%})", chance, answer.nll)
            modules.append((kept(title, grid, by_arm[name], "module.json"), random))
    if len(by_arm["router"]) == len(by_arm["both"]):
        modules += at_shares(answer, think, grid, by_arm["router"])
    best = Arm("oracle (student of both orders)", oracle(answer.outcomes, think.outcomes), answer.nll)
    return Deciding(answer, think, tuple(modules), best)


def at_shares(answer: Arm, think: Arm, grid: Stages, routers: Sequence[Stage]) -> list[tuple[Arm, Arm]]:
    """Returns the router's scores cut where a given share of the questions is thought about, each beside random at that share."""
    files = [json.loads((grid.folder(run) / "module.json").read_text()) for run in routers]
    scores = np.array([file["scores"] for file in files])
    pairs = []
    for share in (0.25, 0.5):
        thinks = scores > np.quantile(scores, 1 - share, axis=1, keepdims=True)
        chosen = choose(answer.outcomes, think.outcomes, thinks)
        chance = at_rate(answer.outcomes, think.outcomes, thinks.mean(1, keepdims=True))
        name = f"router, its {share:.0%} highest scores"
        pairs.append((Arm(name, chosen, answer.nll), Arm(f"random, thinks about {share:.0%}", chance, answer.nll)))
    return pairs


Interval = tuple[float, float, float]  # value, low, high


def estimate(values: Float[np.ndarray, "seeds questions"], groups: Int[np.ndarray, "questions"]) -> Interval:
    """Returns the mean with its interval over seeds and questions."""
    return float(values.mean()), *bootstrap(values, groups)


def show(interval: Interval, scale: float = 100.0, digits: int = 1, signed: bool = False) -> str:
    """Writes `61.0 [55.2, 66.7]`, in percent by default; a single run has no interval."""
    value, low, high = (number * scale for number in interval)
    sign = "+" if signed else ""
    if np.isinf(low):
        return f"{value:{sign}.{digits}f} (one run)"
    return f"{value:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def verdict(interval: Interval) -> str:
    """Judges the claim that a number is above 0."""
    return "held" if interval[1] > 0 else "did not hold" if interval[2] < 0 else "undecided"


def arms_table(arms: Sequence[Arm], rows: Sequence[Row], answer: Arm, think: Arm) -> str:
    """Writes a table of the arms around two modes: tokens are saved against a mixture of these."""
    groups, tasks = np.array([row.group for row in rows]), np.array([row.task for row in rows])
    names = list(dict.fromkeys(tasks))
    lines = []
    for each in arms:
        correct = each.outcomes.correct
        saved = tokens_saved(each.outcomes, answer.outcomes, think.outcomes)
        lines.append(
            [
                each.name,
                str(len(correct)),
                show(estimate(correct, groups)),
                *(f"{100 * correct[:, tasks == name].mean():.1f}" for name in names if len(names) > 1),
                f"{each.outcomes.tokens_per_answer:.1f}",
                *("–" if np.isnan(t) else f"{1000 * t:.0f}" for t in (each.seconds, each.cpu_seconds)),
                "–" if saved is None else f"{saved:+.1f}",
            ]
        )
    tasks_shown = [f"{name}, %" for name in names if len(names) > 1]
    headers = ["arm", "seeds", "accuracy, %", *tasks_shown, "tokens an answer", "ms", "CPU ms", "tokens saved"]
    return markdown(headers, lines)


COVERAGES = (1.0, 0.75, 0.5, 0.25)


def abstention_table(arms: Sequence[Arm]) -> str:
    """Writes the accuracy among the answers that a student is surest of, and the tokens that each of them costs."""
    lines = []
    for each in arms:
        found = [abstaining(each.outcomes, each.nll, coverage) for coverage in COVERAGES]
        lines.append([each.name, *(f"{100 * accuracy:.1f} ({tokens:.1f})" for accuracy, tokens in found)])
    return markdown(["accuracy, % (tokens an answer)", *(f"answers {coverage:.0%}" for coverage in COVERAGES)], lines)


def corruption_table(arms: Mapping[tuple[str, float], Arm], rows: Sequence[Row]) -> str:
    """Writes a table of the accuracy of each order over the share of corrupted steps."""
    groups = np.array([row.group for row in rows])
    shares = sorted({share for _, share in arms})
    lines = [
        [f"{share:.0%}", *(_cell(arms.get((name, share)), groups) for name in ("pre", "post"))] for share in shares
    ]
    return markdown(["steps with a slip", "pre-thinking, %", "post-thinking, %"], lines)


def _cell(each: Arm | None, groups: np.ndarray) -> str:
    return "–" if each is None else show(estimate(each.outcomes.correct, groups))


AMPLIFIER = {
    "spearman": "rank correlation of NLL_y and NLL_r",
    "nll_share": "share of the NLL that the hardest quarter holds",
    "nll_share_answer": "… of the answers' NLL alone",
    "gradient_share": "share of the gradient norms",
    "gradient_share_answer": "… of the answers' gradients alone",
    "rationale_ratio": "rationale NLL, hardest quarter over the others",
    "gradient_ratio": "norm of the rationale's gradient, likewise",
    "cosine": "cosine between the gradients of answer and rationale",
}


def amplifier_table(results: Mapping[str, Sequence[Mapping[str, float]]], stages: Sequence[float]) -> str:
    """Compares both orders at each stage; means with Student's interval over seeds."""
    columns = [(name, stage) for name in ("post", "pre") for stage in stages]
    lines = [
        [title, *(_mean(results[name], f"{metric}@{stage:g}").show(2) for name, stage in columns)]
        for metric, title in AMPLIFIER.items()
    ]
    return markdown(["", *(f"{name}, {stage:.0%} of the steps" for name, stage in columns)], lines)


def _mean(results: Sequence[Mapping[str, float]], metric: str) -> Mean:
    return mean([result[metric] for result in results if metric in result])


def interval_of(average: Mean) -> Interval:
    """Returns value, low, high; unbounded for a single run."""
    half = average.half if np.isfinite(average.half) else np.inf
    return average.value, average.value - half, average.value + half


def claims(
    arms: Mapping[tuple[str, float], Arm],
    results: Mapping[str, Sequence[Mapping[str, float]]],
    rows: Sequence[Row],
    decided: Deciding | None,
) -> str:
    """Returns the claims of the paper's abstract that these runs bear on, with what was measured."""
    groups = np.array([row.group for row in rows])
    lines = [*slip_claim(arms, groups), *_amplifier_claims(results["post"])]
    stops = [result for result in results["post"] if "early_stop_same" in result]
    same, whole = (np.mean([result[name] for result in stops]) for name in ("early_stop_same", "tokens_without_stop"))
    tokens = arms["post", 0.0].outcomes.tokens_per_answer
    stopping = f"{same:.1%} of the answers are the same; {tokens:.1f} tokens instead of {whole:.1f}"
    lines.append(["decoding can stop once the answer is out", stopping, "held" if same == 1 else "did not hold"])
    gap = estimate(arms["pre", 0.0].outcomes.correct - arms["post", 0.0].outcomes.correct, groups)
    measured = f"pre minus post {show(gap, signed=True)} points"
    lines.append(["answering first alone loses the power to break questions down", measured, verdict(gap)])
    for module, random in decided.modules if decided else ():
        correct = module.outcomes.correct
        for claim, other in (
            (f"{module.name}: more accurate than answering first", decided.answer),
            (f"{module.name}: more accurate than random at the same rate", random),
        ):
            better = estimate(correct - other.outcomes.correct, groups)
            lines.append([claim, f"{show(better, signed=True)} points", verdict(better)])
    return markdown(["claim", "measured", "verdict"], lines)


def slip_claim(arms: Mapping[tuple[str, float], Arm], groups: np.ndarray) -> list[list[str]]:
    """Judges the claim at the largest share; where slips do not hurt pre-thinking there is nothing to be spared."""
    worst = max(share for _, share in arms)
    if not worst or not {("pre", worst), ("post", worst)} <= set(arms):
        return []
    lost = {name: arms[name, worst].outcomes.correct - arms[name, 0.0].outcomes.correct for name in ("post", "pre")}
    post, pre, spared = (estimate(v, groups) for v in (lost["post"], lost["pre"], lost["post"] - lost["pre"]))
    measured = (
        f"with {worst:.0%} of the steps corrupted post {show(post, signed=True)} points, pre {show(pre, signed=True)}; "
        f"the difference is {show(spared, signed=True)}"
    )
    suffered = pre[2] < 0  # else there was nothing that the other order could be spared
    claim = "a slip in the rationale cannot spoil an answer that is given first"
    return [[claim, measured, verdict(spared) if suffered else "undecided: slips cost pre-thinking nothing that shows"]]


def _amplifier_claims(results: Sequence[Mapping[str, float]]) -> list[list[str]]:
    """Judges the claim at every stage of the student that answers first."""
    lines = []
    for stage in _stages(results):
        correlation = interval_of(_mean(results, f"spearman@{stage:g}"))
        claim = f"the rationale amplifies the loss of hard samples: rank correlation at {stage:.0%} of the steps"
        lines.append([claim, show(correlation, 1, 2, True), verdict(correlation)])
        shares = [r[f"gradient_share@{stage:g}"] - r[f"gradient_share_answer@{stage:g}"] for r in results]
        extra = interval_of(mean(shares))
        claim = "… the hardest quarter's share of the gradient norms, against the answer alone"
        lines.append([claim, f"{show(extra, signed=True)} points", verdict(extra)])
    return lines


def _stages(results: Sequence[Mapping[str, float]]) -> list[float]:
    return sorted({float(name.rpartition("@")[2]) for name in results[0] if name.startswith("spearman@")})


def plot_tokens(arms: Sequence[Arm], rows: Sequence[Row], path: Path) -> None:
    """Plots accuracy against tokens an answer."""
    groups = np.array([row.group for row in rows])
    figure, axes = _axes("tokens an answer", "accuracy, %")
    for i, each in enumerate(arms):
        value, low, high = (100 * number for number in estimate(each.outcomes.correct, groups))
        errors = [[value - low], [high - value]]
        tokens = each.outcomes.tokens_per_answer
        axes.errorbar(tokens, value, yerr=errors, marker="o^sDvPX*<>"[i % 10], label=each.name, capsize=3)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def plot_corruption(arms: Mapping[tuple[str, float], Arm], rows: Sequence[Row], path: Path) -> None:
    """Plots accuracy against the share of corrupted steps."""
    groups = np.array([row.group for row in rows])
    figure, axes = _axes("steps with a slip, %", "accuracy, %")
    for name, title in (("pre", "pre-thinking"), ("post", "post-thinking")):
        shares = sorted(share for arm, share in arms if arm == name)
        points = np.array([estimate(arms[name, share].outcomes.correct, groups) for share in shares]) * 100
        errors = [points[:, 0] - points[:, 1], points[:, 2] - points[:, 0]]
        axes.errorbar([100 * share for share in shares], points[:, 0], yerr=errors, marker="o", capsize=3, label=title)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _axes(x: str, y: str):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.8), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    return figure, axes


def write(grid: Stages, runs: Sequence[Stage], rows: Sequence[Row], out: Path) -> str:
    """Writes report.md, runs.csv and plots of the runs that are finished; returns the text of the report."""
    arms: dict[tuple[str, float], Arm] = {}
    for name in ("pre", "post"):
        for share in dict.fromkeys(run.settings["share"] for run in runs):
            members = [run for run in runs if (run.settings["arm"], run.settings["share"]) == (name, share)]
            if found := arm(name, grid, members):
                arms[name, share] = found
    clean = [run for run in runs if not run.settings["share"] and grid.is_done(run)]
    results = {name: [grid.value(run) for run in clean if run.settings["arm"] == name] for name in ("pre", "post")}
    pre, post, decided = arms["pre", 0.0], arms["post", 0.0], deciding(grid, runs)
    shown = [pre, post, *derived(pre, post)]
    parts = [arms_table(shown, rows, post, pre), abstention_table([pre, post])]
    if decided:
        parts.append(arms_table(decided.all, rows, decided.answer, decided.think))
    parts += [
        corruption_table(arms, rows),
        amplifier_table(results, _stages(results["post"])),
        claims(arms, results, rows, decided),
    ]
    text = "\n".join(parts)
    (out / "report.md").write_text(text)
    write_csv(grid.rows(runs), out / "runs.csv")
    if not can_plot():
        return text
    plot_tokens(shown, rows, out / "tokens.png")
    if decided:
        plot_tokens(decided.all, rows, out / "tokens_both.png")
    plot_corruption(arms, rows, out / "corruption.png")
    return text
