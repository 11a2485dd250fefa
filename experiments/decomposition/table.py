"""Runs the table of decomposition: cloning, filtered cloning, ILQL, DPO and CogPO, with accuracy had offline.

    python -m experiments.decomposition.table --out=runs/decomposition_table
    python -m experiments.decomposition.table --out=runs/decomposition_table --seeds=0,1,2,3,4 --sizes=dist

Problems are the built-in arithmetic. An oracle teacher writes three decompositions of each, some of them imperfect, and says
which sub-questions are useful; a calculator answers a sub-question rightly exactly if it is well posed. So accuracy, the
share of problems that are solved by way of a student's sub-questions, costs no large model. Students are made from nothing,
in GPT-2's architecture: `dist` has half the layers of `small`, as DistilGPT2 has of GPT-2, at a fraction of their width.
Every arm of a seed starts from the same cloned student. What is finished is kept, and the same command goes on after an
interruption. docs/methods/decomposition.md says what was found.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.decomposition.arms import ARMS, Recipe, train_arms
from experiments.decomposition.problems import Source, data_of, graded
from experiments.decomposition.verdicts import by_seed, claims_table, compare, interval, mcnemar_by_seed
from smallr.agents.method_stages import MethodStages
from smallr.core.comparison import groups, markdown, table, write_csv
from smallr.core.errors import UserError
from smallr.core.programs import keep_programs
from smallr.core.stages import Stage, Stages, Stopped
from smallr.language.opening import open_language_model
from smallr.methods.decomposition.sequence import Markers
from smallr.models.scratch import Size, train_tokenizer, write_scratch
from smallr.sampling.requests import Request, SamplingParams

METRICS = {
    "correct": "accuracy",
    "granularity": "granularity",
    "bleu": "BLEU",
    "repeated": "repeated",
    "count": "questions",
}
DECODING = {"greedy": (0.0, 1), "sampled": (1.0, 4)}  # name -> temperature, samples of a problem
TEACHER = "teacher"


def new_student(folder: Path, data: Mapping[str, Any], size: Size, vocabulary: int, seed: int) -> Path:
    """Writes a student of random weights, with a tokenizer learned from the training rows."""
    marks = Markers()
    texts = [marks.prompt(row["question"]) + marks.completion(row["answers"]) for row in data["train"]]
    write_scratch(folder / "model", train_tokenizer(texts, vocabulary), size, seed)
    return folder / "model"


def score(
    folder: Path, model: Path, advantage: Path | None, data: Mapping[str, Any], recipe: Recipe, max_tokens: int
) -> dict[str, Any]:
    """Has a student write sub-questions of the test problems, and grades what the calculator makes of them."""
    del folder
    marks, found = Markers(), {}
    steered = {"advantage": str(advantage), "beta": recipe.beta} if advantage else {}
    with contextlib.closing(open_language_model(str(model), dtype="float32", decode_slots=64, **steered)) as opened:
        for name, (temperature, samples) in DECODING.items():
            params = SamplingParams(max_tokens=max_tokens, temperature=temperature, n=samples, seed=0)
            asked = [Request(prompt=marks.prompt(row["question"]), params=params) for row in data["test"]]
            results = opened.complete_sync(asked)
            found[name] = graded(
                data["test"], [[marks.read(each.text) for each in result.samples] for result in results]
            )
    return found


class Worker:
    """Runs an arm of a size and a seed, in the folder that all arms of these share."""

    def __init__(self, options: argparse.Namespace, out: Path):
        self._options, self._out = options, out

    def __call__(self, stage: Stage, folder: Path, needs: list[Path]) -> dict[str, Any]:
        """Runs what is missing; returns the arm's metrics."""
        del needs
        options, (arm, size, seed) = self._options, (stage.settings[name] for name in ("arm", "size", "seed"))
        stages = MethodStages(self._out / f"seed{seed}-{size}", seed=seed)
        source = Source(
            options.templates,
            options.largest,
            options.questions,
            options.held_out,
            options.omit,
            options.repeat,
            options.useless,
            options.verdict_error,
        )
        data = stages.do("data", data_of, source, seed)
        if arm == TEACHER:
            scored = stages.make("score_teacher", teacher_score, data)
        else:
            recipe, shape = recipe_of(options), size_of(options, size)
            student = stages.do("student", new_student, data, shape, options.vocabulary, seed)
            trained = train_arms(stages, [arm], data, student, recipe, seed)[arm]
            name = "score_" + arm.lower().replace(" ", "_").replace(",", "")
            scored = stages.do(name, score, trained.model, trained.advantage, data, recipe, options.max_tokens)
        with quiet(folder):
            stages.run()
        return stages.value(scored)


def teacher_score(data: Mapping[str, Any]) -> dict[str, Any]:
    """Grades the teacher's own sub-questions of the test problems, imperfect as they are; it always samples."""
    found = graded(data["test"], [[row["answers"]] for row in data["test"]])
    return dict.fromkeys(DECODING, found)


def recipe_of(options: argparse.Namespace) -> Recipe:
    """Reads the recipe from the flags."""
    return Recipe(
        options.batch,
        options.length,
        options.bc_steps,
        options.bc_rate,
        options.steps,
        options.rate,
        options.preference_rate,
        options.beta,
    )


def size_of(options: argparse.Namespace, name: str) -> Size:
    """Returns the size of a student.

    Raises:
      UserError: no such size.
    """
    layers = {"dist": options.layers // 2, "small": options.layers}
    if name not in layers:
        raise UserError(f"--sizes: {name!r} must be one of: {', '.join(layers)}")
    return Size("gpt2", max(layers[name], 1), options.width, 4, options.length)


@contextlib.contextmanager
def quiet(folder: Path):
    """Prints and progress to `log.txt`."""
    with (folder / "log.txt").open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield


def report(rows: Sequence[Mapping[str, Any]], out: Path) -> str:
    """Writes table.md, and a CSV for each way of decoding, of the finished runs; returns the page."""
    if not rows:
        return "nothing is finished yet"
    parts = []
    for decoding in DECODING:
        found = [{**settings_of(row), **row[decoding]} for row in rows]
        parts += [f"# Decoding: {decoding}\n\n{page_of(found)}"]
        write_csv([numbers_of(row) for row in found], out / f"{decoding}.csv")
    page = "\n".join(parts)
    (out / "table.md").write_text(page)
    return page


def settings_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what tells a run from others."""
    return {name: row[name] for name in ("arm", "size", "seed")}


def numbers_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a run without its list of problems."""
    return {name: value for name, value in row.items() if name != "right"}


def page_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes the tables of one way of decoding."""
    arms, lines = groups(rows, ["size", "arm"]), []
    for (size, arm), runs in arms.items():
        base = arms.get((size, "BC"), [])
        found = compare(runs, base) if arm != "BC" else None
        gap = f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]" if found else "–"
        against = [gap, by_seed(runs, base), mcnemar_by_seed(runs, base)] if found else ["–"] * 3
        lines.append([size, arm, str(len(runs)), interval(runs), *against])
    headers = ["student", "arm", "seeds", "accuracy", "against BC, over problems", "over seeds", "McNemar p by seed"]
    page = "## Accuracy, 95 % over problems\n\n" + markdown(headers, lines)
    page += "\n## All metrics, mean and Student's interval over seeds\n\n"
    page += table([numbers_of(row) for row in rows], ["size", "arm"], METRICS)
    return page + "\n## Claims of the paper\n\n" + claims_table(arms)


def flags() -> argparse.ArgumentParser:
    """Names the flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, meaning in (
        ("out", "runs/decomposition_table", "folder of the grid"),
        ("arms", ";".join((TEACHER, *ARMS)), "of these, separated by semicolons"),
        ("sizes", "dist,small", "of these, separated by commas"),
        ("seeds", "0,1,2", "of these, separated by commas; each has its own training problems and weights"),
        ("templates", "garden,school,theatre,bus", "of the built-in problems; these ask by few fixed sentences"),
        ("largest", 9999, "largest number in a problem or its solution"),
        ("questions", 600, "training problems"),
        ("held_out", 200, "test problems, the same in each seed"),
        ("omit", 0.15, "rate at which the teacher leaves a sub-question out"),
        ("repeat", 0.1, "rate at which it asks one again"),
        ("useless", 0.15, "rate at which it adds a useless one"),
        ("verdict_error", 0.1, "rate at which a verdict on a sub-question is wrong"),
        ("layers", 4, "of the student `small`; `dist` has half"),
        ("width", 128, "of the students"),
        ("vocabulary", 1024, "of their tokenizer"),
        ("batch", 8, "packed rows a step"),
        ("length", 512, "tokens a row"),
        ("max_tokens", 160, "of a student's sub-questions"),
        ("bc_steps", 400, "of cloning"),
        ("bc_rate", 3e-3, "of cloning"),
        ("steps", 150, "of everything behind it"),
        ("rate", 1e-3, "of filtered cloning and ILQL"),
        ("preference_rate", 1e-4, "of DPO and CogPO"),
        ("beta", 1.0, "of the advantages in decoding"),
    ):
        parser.add_argument(f"--{name}", default=default, type=type(default), help=f"{meaning} (default: {default})")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Runs what is missing, then writes the tables."""
    options = flags().parse_args(argv)
    options.templates = tuple(filter(None, options.templates.split(",")))
    keep_programs()
    out = Path(options.out)
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "arms", "seeds", "sizes")}
    try:
        names = options.arms.split(";")
        if unknown := set(names) - {TEACHER, *ARMS}:
            raise UserError(f"--arms: {sorted(unknown)[0]!r} must be one of: {'; '.join((TEACHER, *ARMS))}")
        runs = [
            Stage(
                f"{arm.replace(' ', '_').replace(',', '')}-{size}-s{seed}",
                {"arm": arm, "size": size, "seed": seed, "options": settings},
            )
            for size in options.sizes.split(",")
            for seed in map(int, options.seeds.split(","))
            for arm in names
        ]
        grid = Stages(out)
        grid.run(runs, Worker(options, out))
        print(report(grid.rows(runs), out))
    except Stopped:
        print("stopped; the same command goes on from here")
    except UserError as error:
        sys.exit(f"smallr: {error}")


if __name__ == "__main__":
    main()
