"""Generation and solving as a whole, by oracles and by agents with scripted replies."""

from __future__ import annotations

import json
import shutil

import pytest
from datasets import load_from_disk

from smallr.cli.main import main
from smallr.core.errors import UserError
from smallr.core.stages import Stopped
from smallr.data.builtin.lookup import find_problem
from smallr.language.completing import CompletingModel
from smallr.methods.decomposition import agents
from smallr.methods.decomposition.arithmetic import questions_of
from smallr.methods.decomposition.config import generation, solving
from smallr.methods.decomposition.oracle import Oracle
from smallr.methods.decomposition.pipeline import run_generation
from smallr.methods.decomposition.rows import load_decompositions
from smallr.methods.decomposition.solving import run_solving
from smallr.sampling.requests import Result, Sample
from tests.methods.decomposition.shared import write_jsonl

SETS = ("decompositions", "bc", "filtered_bc", "ilql_full", "ilql_sparse", "pairs", "raw")


def generate_config(**data):
    """Generation of a few problems by an oracle that errs."""
    config = generation()
    config.data.splits = "train[:8],test[:4]"
    config.data.update(data)
    config.model = "oracle:arithmetic?omit=0.2&repeat=0.2&useless=0.2&verdict_error=0.2"
    config.parser = "published"  # no processes; these numbers have neither signs nor thousands
    return config


def solve_config(**student):
    config = solving()
    config.data.splits = "test[:4]"
    config.student.update(student)
    config.solver.model, config.reference.rows, config.parser = "oracle:calculator", "builtin", "published"
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder of generation, and its report."""
    folder = tmp_path_factory.mktemp("generation") / "run"
    return folder, run_generation(generate_config(), folder)


def test_what_a_generation_leaves(run):
    folder, report = run
    assert report["sets"] == {"asked": 36, "kept": 36}
    assert report["open"] == 0
    assert {name: report["usage"]["by_agent"][name]["requests"] for name in report["agents"]} == {
        "questioner": 36,
        "answerer": 36,
        "judge": 108,
    }
    rows = {split: load_decompositions(str(folder / "decompositions"), split).rows for split in ("train", "test")}
    assert {split: len(found) for split, found in rows.items()} == {"train": 24, "test": 12}
    correct = 0
    for row in (*rows["train"], *rows["test"]):
        problem = find_problem(row.question)
        steps = questions_of(problem)
        wanted = [text for text in dict.fromkeys(row.sub_questions) if text in steps]
        assert row.correctness == float(wanted == steps), row  # the calculator needs every step
        assert len(row.usefulness) == len(row.sub_questions)
        assert set(row.usefulness) <= {0, 1 / 3, 2 / 3, 1}
        correct += row.correctness
    assert report["figures"]["correctness"][0] == correct / 36
    lines = (folder / "decompositions.test.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [row.published() for row in rows["test"]]
    assert report["rows"]["filtered_bc"]["train"] == sum(row.correctness for row in rows["train"])
    for name in SETS:
        found = {split: len(data) for split, data in load_from_disk(str(folder / name)).items()}
        assert found == report["rows"][name]
    text = (folder / "report.md").read_text()
    assert "36 of 36 sets of sub-questions are kept, of 12 problems" in text


class Breaking(Oracle):
    """Is an oracle whose server is gone after some requests."""

    left = 0

    async def _answer(self, request, sample=0):
        Breaking.left -= 1
        if Breaking.left < 0:
            raise UserError("the server is gone")
        return await super()._answer(request, sample)


def test_a_stopped_run_goes_on_and_comes_to_the_same(run, tmp_path, monkeypatch):
    monkeypatch.setattr(agents, "Oracle", Breaking)
    config = generate_config()
    config.concurrency = 3
    Breaking.left = 80
    with pytest.raises(Stopped, match="the server is gone"):
        run_generation(config, tmp_path / "run")
    finished = len((tmp_path / "run" / "journal.jsonl").read_text().splitlines())
    assert 0 < finished < 12
    Breaking.left = 15 * (12 - finished)  # of the problems that are left, not one more
    run_generation(config, tmp_path / "run")
    assert Breaking.left == 0
    for name in ("raw", "decompositions"):
        for split in ("train", "test"):
            file = f"{name}.{split}.jsonl"
            assert (tmp_path / "run" / file).read_bytes() == (run[0] / file).read_bytes()
    other = generate_config()
    other.sets = 2
    with pytest.raises(UserError, match=r"holds another generation of decompositions \(sets"):
        run_generation(other, tmp_path / "run")


class Scripted(CompletingModel):
    """Replies by a function of role and prompt."""

    def __init__(self, role, reply):
        super().__init__(f"scripted {role}")
        self._role, self._reply = role, reply

    async def _answer(self, request, sample=0):
        text = self._reply(self._role, request.messages[0]["content"])
        return Result(error=text) if text.startswith(("400", "503")) else Result((Sample(text, "stop"),))

    async def _release(self):
        """Holds nothing."""


def scripted(monkeypatch, reply):
    monkeypatch.setattr(agents, "_open", lambda spec, role, config: Scripted(role, reply))


def test_every_drop_is_counted_by_its_reason(tmp_path, monkeypatch):
    def reply(role, prompt):
        number = int(prompt.rpartition("Problem: ")[2].split()[0])
        if role == "questioner":
            return "I cannot" if number == 1 else "Q1: Who?\nQ2: How?"
        if role == "answerer":
            return {2: "A1: 1\nFinal answer: 2", 3: "400 too long"}.get(number, "A1: 1\nA2: 2\n\nFinal answer: -4")
        return "Q1: Yes" if number == 4 else "Q1: Yes\nQ2: No"

    scripted(monkeypatch, reply)
    questions = [{"question": f"{i} and what?", "answer": f"It is so.\n#### {i - 9}"} for i in range(1, 6)]
    bad = [{"question": "", "answer": "1"}, {"question": "Why?", "answer": "so"}, questions[0]]
    source = write_jsonl(tmp_path / "rows.jsonl", [*questions, *bad])
    config = generate_config(source=source, splits="train")
    config.parser, config.reasks = "math_verify", 1
    report = run_generation(config, tmp_path / "run")
    assert report["drops"] == {
        "questioner: a line that is no sub-question": 3,
        "answerer: not one answer to each sub-question": 3,
        "answerer: request refused": 3,
        "judge: not one verdict on each sub-question": 3,
    }
    assert report["problems"] == {
        "read": 8,
        "left_out": {"no question": 1, "the answer is no number": 1, "the question of an earlier row": 1},
        "finished": 5,
        "without_a_set": 4,
    }
    assert report["left_out_at"]["no question"] == [f"{source}, row 5"]
    (row,) = {row for row in load_decompositions(str(tmp_path / "run" / "decompositions")).rows}
    assert (row.sub_questions, row.usefulness, row.correctness, row.true_answer) == (
        ("Who?", "How?"),
        (1.0, 0.0),
        1.0,
        -4,
    )
    text = (tmp_path / "run" / "report.md").read_text()
    assert "| judge: not one verdict on each sub-question | 3 |" in text
    assert "answerer: request refused: 400 too long" in text


def test_a_teacher_that_cannot_do_it_is_an_error(tmp_path, monkeypatch, capsys):
    scripted(monkeypatch, lambda role, prompt: "I cannot")
    argv = [
        "--config.data.splits=train[:2]",
        "--config.reasks=0",
        "--config.parser=published",
        f"--out={tmp_path / 'run'}",
    ]
    assert main(["decompose", *argv]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "no set of sub-questions could be used (6 questioner: a line that is no sub-question)" in error
    assert "0 of 6 sets of sub-questions are kept, of 2 problems" in (tmp_path / "run" / "report.md").read_text()


def test_a_student_is_measured(run, tmp_path):
    rows = load_decompositions(str(run[0] / "decompositions"), "test").rows
    first = {row.question: row for row in reversed(rows)}
    report = run_solving(solve_config(rows=str(run[0] / "decompositions"), split="test"), tmp_path / "out")
    solved = [json.loads(line) for line in (tmp_path / "out" / "solved.jsonl").read_text().splitlines()]
    assert [row["correct"] for row in solved] == [bool(first[row["problem"]].correctness) for row in solved]
    value, low, high = report["accuracy"]
    assert value == sum(row["correct"] for row in solved) / 4
    assert low < value < high or value in (0, 1)
    assert report["referenced"] == report["problems"] == 4
    # the released responses' layout is read as well, and a perfect student scores fully
    perfect = [{"problem": row["problem"], "questions": numbered_steps(row["problem"])} for row in solved]
    source = write_jsonl(tmp_path / "perfect.jsonl", perfect)
    report = run_solving(solve_config(rows=source), tmp_path / "perfect")
    assert [report[name][0] for name in ("accuracy", "granularity", "bleu", "repeated")] == pytest.approx([1, 1, 1, 0])
    assert report["usage"]["requests"] == 4
    (tmp_path / "short.jsonl").write_text(json.dumps(perfect[0]) + "\n")
    with pytest.raises(UserError, match="no sub-questions for 3 of the problems, the first one"):
        run_solving(solve_config(rows=str(tmp_path / "short.jsonl")), tmp_path / "short")


def numbered_steps(question):
    return "\n".join(f"Q{i}: {text}" for i, text in enumerate(questions_of(find_problem(question)), 1))


def test_a_solver_that_does_not_answer(run, tmp_path, monkeypatch):
    rows = {"rows": str(run[0] / "decompositions"), "split": "test"}
    seen = []

    def once(role, prompt):
        problem = prompt.rpartition("Problem: ")[2]
        seen.append(problem)
        return "Final answer: 1" if problem == seen[0] else "I would rather not."

    scripted(monkeypatch, once)
    config = solve_config(**rows)
    config.reasks = 0
    report = run_solving(config, tmp_path / "once")
    assert report["no_answer"] == {"no final answer": 3}
    assert (
        "3 problems have no answer and count as wrong: no final answer."
        in (tmp_path / "once" / "report.md").read_text()
    )
    for answer, message in (
        ("Well.", r"none of 4 replies can be used \(no final answer\)"),
        ("400 no", "request refused: 400 no"),
    ):
        scripted(monkeypatch, lambda role, prompt, answer=answer: answer)
        with pytest.raises(UserError, match=message):
            run_solving(config, tmp_path / answer)
    scripted(monkeypatch, lambda role, prompt: "503 busy")
    with pytest.raises(Stopped, match=r"4 problems got no reply \(503 busy\); the same command"):
        run_solving(config, tmp_path / "busy")
    scripted(monkeypatch, lambda role, prompt: "Final answer: 1")
    assert run_solving(config, tmp_path / "busy")["no_answer"] == {}


@pytest.mark.slow
def test_a_local_student_writes(tmp_path):
    config = solve_config(model="tiny-random", max_tokens=8)
    config.compute.dtype, config.cache = "float32", False
    report = run_solving(config, tmp_path / "out")
    assert report["no_answer"] == {"no sub-questions": 4}
    assert report["accuracy"][0] == 0
    assert report["bleu"][0] == 0
    folder = next((tmp_path / "out").glob("sub_questions-*"))
    before = (folder / "journal.jsonl").read_bytes()
    shutil.rmtree(next((tmp_path / "out").glob("answers-*")))
    assert run_solving(config, tmp_path / "out") == report
    assert (folder / "journal.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["--solve"], 1, "give --config.student.model, or --config.student.rows"),
        (["generate", "--solve"], 2, "the config generate is one of generation"),
        (["solve"], 2, "the config solve is one of solving: add --solve"),
        (["--convert=no.jsonl", "--out=x"], 1, "--convert: no.jsonl: no such file"),
        (["--convert=no.jsonl"], 2, "--convert needs --out"),
        (["--config.model=", "--out=x"], 1, "config.model is empty, and config.agents.questioner.model too"),
        (
            ["--config.parser=publishd", "--out=x"],
            1,
            "must be one of: math_verify, published; did you mean 'published'?",
        ),
        (["--config.markers.open=", "--out=x"], 1, "config.markers.open = ''"),
        (["--config.model=oracle:arithmetics", "--out=x"], 1, "there is one oracle, oracle:arithmetic"),
        (["--config.data.columns.answer=gold", "--out=x"], 1, "no column 'gold' to use as 'answer'"),
        (["--config.data.columns.answer=template", "--out=x"], 1, "row 0: the answer is no number"),
        (["--solve", "--config.student.rows=no.jsonl", "--out=x"], 1, "config.student.rows: no.jsonl: no such file"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, argv, code, message):
    monkeypatch.chdir(tmp_path)
    assert main(["decompose", *argv]) == code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
