"""Rows, modes, shares, the paper's rule for pairs, and their counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from smallr.core.errors import UserError
from smallr.data.chat import Renderer
from smallr.data.rows import TextRow
from smallr.data.saving import save_rows
from smallr.data.tokenize import TokenizeOptions, tokenize
from smallr.evals.statistics import pass_at_1
from smallr.methods.collate import config as fields
from smallr.methods.collate.answers import agreement, choose_provider, is_right
from smallr.methods.collate.cost import Lengths, Work, measured_pace
from smallr.methods.collate.data import load_data, mixed_modes, opened, shares
from smallr.methods.collate.generation import write_rationales
from smallr.methods.collate.modes import ANSWER, GIVEN, RATIONALE, write_tokenizer
from smallr.methods.collate.pairs import choose, gold_over_own, prefer_useful, refined_pairs
from smallr.methods.collate.report import agreement_lines, next_commands, training_counts
from smallr.methods.collate.utility import UtilityScorer
from smallr.methods.collate.writer import Writer
from tests.methods.collate.small import END, MARKS, MODES, ROWS, small_config, write_lines, write_model

RULE = {"winner": "utility", "filter": True, "seed": "0"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return write_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory, model):
    value = write_tokenizer(tmp_path_factory.mktemp("tokenizer"), model, MARKS)
    assert value["end"] == END
    return AutoTokenizer.from_pretrained(str(value["tokenizer"]))


def stage(folder, rows) -> dict:
    save_rows(rows, folder / "rows")
    return {"rows": folder / "rows"}


# Modes


def test_the_chat_template_writes_the_prompts_of_training(tokenizer):
    def asked(content: str) -> str:
        return tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )

    question = ROWS[3]["question"]
    assert asked(question) == MODES.prompt(RATIONALE, question)
    for mode in (ANSWER, RATIONALE, GIVEN):
        assert asked(MODES.prompt(mode, question, "1 + 1 = 2.")) == MODES.prompt(mode, question, "1 + 1 = 2.")
    # A model's whole answer in a chat is the text that the modes I→R and [I;R]→A train, piece by piece.
    text = "2 + 3 = 5.\n\nAnswer: 5"
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
    trained = MODES.prompt(GIVEN, question, "2 + 3 = 5.") + MODES.written_answer("5")
    assert tokenizer.apply_chat_template(turns, tokenize=False) == trained
    assert trained.startswith(MODES.prompt(RATIONALE, question) + MODES.written_rationale("2 + 3 = 5."))
    (marked,) = Renderer(tokenizer, chat=True).text_row(TextRow(0, question, (text,), {}))
    assert marked.text[marked.spans[0].start : marked.spans[0].end] == f" {text}{END}"


def test_only_the_targets_of_a_mode_are_scored(tmp_path, tokenizer):
    mixed = opened(mixed_modes(tmp_path, ROWS[:2], MODES, False))
    assert mixed["mode"] == [ANSWER, RATIONALE, GIVEN] * 2
    examples = tokenize(mixed, tokenizer, TokenizeOptions("sft", 128, chat=False, end=False))
    scored = [tokenizer.decode(e.completions[0].tokens[e.completions[0].scored]) for e in examples]
    a, b = ROWS[:2]
    assert scored == [
        text
        for each in (a, b)
        for text in (f" {each['answer']}{END}", f" {each['rationale']}\n\nAnswer:", f" {each['answer']}{END}")
    ]
    assert [tokenizer.decode(e.prefix) for e in examples] == mixed["prompt"]


def test_a_row_without_a_rationale_serves_the_answer_alone(tmp_path):
    value = mixed_modes(tmp_path, [ROWS[0], {**ROWS[1], "rationale": ""}], MODES, True)
    assert opened(value)["mode"] == [ANSWER, RATIONALE, GIVEN, ANSWER, "refine"]
    assert value["counts"] == {"rows in": 2, ANSWER: 2, RATIONALE: 1, GIVEN: 1, "refine": 1}


# Rows


def test_rows_are_counted_by_reason(tmp_path, model):
    config = small_config(tmp_path, model)
    with config.unlocked():
        config.data.rows = write_lines(
            tmp_path / "mixed.jsonl",
            [
                ROWS[0],
                {**ROWS[1], "rationale": "So Answer: 8"},
                {**ROWS[2], "rationale": None},
                {**ROWS[3], "question": " "},
                {**ROWS[4], "answer": None},
                ROWS[-1],
            ],
        )
    data = load_data(config)
    assert [each["rationale"] for each in data.tuning] == [ROWS[0]["rationale"], "", ""]
    assert data.counts["rows"] == {
        "read": 6,
        "kept": 3,
        "rationale left out: it holds the answer mark": 1,
        "empty question": 1,
        "empty answer": 1,
        "question of the validation rows": 1,
    }


def test_gsm8k_is_read_from_one_column(tmp_path, model):
    config = small_config(tmp_path, model, **{"data.answer_mark": "####"})
    with config.unlocked():
        lines = [
            {"question": "How many?", "answer": "He has 2*3=<<2*3=6>>6.\n#### 6"},
            {"question": "And?", "answer": "7"},
        ]
        config.data.rows = write_lines(tmp_path / "gsm.jsonl", lines)
    first, second = load_data(config).tuning
    assert first == {"question": "How many?", "rationale": "He has 2*3=6.", "answer": "6"}
    assert (second["rationale"], second["answer"]) == ("", "7")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "a", "answer": "four"}], "no row has a rationale"),
        (
            [{**ROWS[0], "answer": "B"}, {**ROWS[1], "answer": "(C)"}],
            "row 0: the answer is 'B', and all answers are letters",
        ),
        ([{"question": "", "answer": "b", "rationale": "c"}], r"no row can be used \(read 1, empty question 1\)"),
        ([{"prompt": "a", "answer": "b"}], "no column 'question'"),
    ],
)
def test_rows_that_cannot_be_used_are_one_clear_error(tmp_path, model, rows, message):
    config = small_config(tmp_path, model)
    with config.unlocked():
        config.data.rows = write_lines(tmp_path / "bad.jsonl", rows)
    with pytest.raises(UserError, match=message):
        load_data(config)


def test_shares_are_disjoint_and_follow_from_the_seed():
    rows = [*ROWS, {**ROWS[0], "question": "none", "rationale": ""}]
    cut = shares(rows, 4, 0, 1)
    questions = [each["question"] for share in cut for each in share]
    assert sorted(questions) == sorted(each["question"] for each in ROWS)
    assert sorted(map(len, cut)) == [7, 7, 8, 8]
    assert shares(rows, 4, 0, 1) == cut
    assert shares(rows, 4, 1, 1) != cut
    with pytest.raises(UserError, match=r"shares of 7, fewer than a step holds \(config.training.rows=8\)"):
        shares(rows, 4, 0, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"providers": 1}, "config.providers=1: one provider has no other to choose against"),
        ({"providers": 0}, "config.providers=0: must be at least 1"),
        ({"utility.form": "man"}, "must be one of: mean, sum; did you mean 'mean'"),
        ({"pairs.winner": "best"}, "config.pairs.winner=best: must be one of: utility, random"),
        ({"marks.answer": "A: "}, "must not end in white space"),
        ({"marks.draft": "\nRationale:"}, "must differ"),
    ],
)
def test_bad_fields_are_named_before_anything_runs(change, message):
    config = fields.base()
    config.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=message):
        fields.check(config)
    config = fields.base()
    config.providers, config.rounds = 1, 0
    fields.check(config)


# Pairs


def scored(rationales, utilities, u_0) -> dict:
    return {"question": "q", "answer": "a", "rationales": rationales, "utilities": utilities, "u_0": u_0}


@pytest.mark.parametrize(
    ("utilities", "u_0", "pair", "reason"),
    [
        ([0.2, 0.7, 0.5], 0.6, (1, 0), ""),
        ([0.2, 0.7], 0.7, None, "not above u_0"),
        ([0.2, 0.7], 0.69999, (1, 0), ""),
        ([0.7, 0.7], 0.1, None, "tie"),
        ([0.7, None, 0.3], 0.1, (0, 2), ""),
        ([0.7, None], 0.1, None, "fewer than two usable rationales"),
        ([None, None], None, None, "too long"),
    ],
)
def test_the_rule_for_pairs_by_hand(utilities, u_0, pair, reason):
    rationales = [None if u is None else f"r{s}" for s, u in enumerate(utilities)]
    assert choose(scored(rationales, utilities, u_0), RULE) == (pair, reason)


def test_a_round_keeps_what_helps_and_counts_the_rest(tmp_path, capsys):
    table = [
        scored(["r0", "r1"], [0.9, 0.1], 0.5),
        scored(["r0", "r1"], [0.4, 0.1], 0.5),
        scored(["r", "r"], [0.4, 0.4], 0.1),
        scored(["r0", None], [0.4, None], 0.1),
        scored(["r0", "r1"], [0.2, 0.8], 0.7),
    ]
    value = prefer_useful(tmp_path / "out", stage(tmp_path, table), MODES, RULE, "round 0")
    assert value["counts"] == {
        "rows in": 5, "kept": 2, "not above u_0": 1, "tie": 1, "fewer than two usable rationales": 1,
    }  # fmt: skip
    assert "out: rows in 5, kept 2, not above u_0 1, tie 1, fewer" in capsys.readouterr().out
    first, second = opened(value)
    assert first["prompt"] == "q\n\nRationale:"
    assert (first["chosen"], first["rejected"]) == (" r0\n\nAnswer:", " r1\n\nAnswer:")
    assert (second["chosen"], second["u_winner"], second["u_0"]) == (" r1\n\nAnswer:", 0.8, 0.7)
    kept = prefer_useful(tmp_path / "all", stage(tmp_path / "2", table), MODES, {**RULE, "filter": False}, "")
    assert kept["counts"]["kept"] == 3
    drawn = [
        opened(
            prefer_useful(
                tmp_path / f"random{seed}",
                stage(tmp_path / f"in{seed}", table * 4),
                MODES,
                {"winner": "random", "filter": False, "seed": seed},
                "",
            )
        )["winner"]
        for seed in "ab"
    ]
    assert drawn[0] != drawn[1]
    assert {0, 1} == set(drawn[0])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([scored(["r", "r"], [0.4, 0.4], 0.1)] * 3, r"\(rows in 3, tie 3\); providers that write the same .*train"),
        ([scored(["r", "s"], [0.1, 0.2], 0.4)], r"\(rows in 1, not above u_0 1\); .*config.pairs.filter=False"),
        (
            [scored(["r", "r"], [0.4, 0.4], 0.1), *[scored(["r", None], [0.4, None], 0.1)] * 2],
            r"\(rows in 3, tie 1, fewer than two usable rationales 2\); .*generation.max_tokens where they are cut off",
        ),
        ([scored(["r", "s"], [None, None], None)], r"\(rows in 1, too long 1\); raise config.utility.row_length"),
    ],
)
def test_no_pair_left_says_what_to_change(tmp_path, rows, message):
    with pytest.raises(UserError, match=f"round 1: no pair left {message}"):
        prefer_useful(tmp_path / "out", stage(tmp_path, rows), MODES, RULE, "round 1")


def test_gold_over_own_leaves_out_what_is_no_pair(tmp_path):
    own = [
        {"text": ROWS[0]["rationale"], "usable": True, "problem": ""},
        {"text": "4.", "usable": True, "problem": ""},
        {"text": "", "usable": False, "problem": "empty"},
    ]
    value = gold_over_own(tmp_path / "out", ROWS[:3], stage(tmp_path, own), MODES)
    assert value["counts"] == {"rows in": 3, "kept": 1, "own rationale is the gold one": 1, "empty": 1}
    (pair,) = opened(value)
    assert pair["chosen"], pair["rejected"] == (f" {ROWS[1]['rationale']}\n\nAnswer:", " 4.\n\nAnswer:")


def test_pairs_of_refinement_by_hand(tmp_path):
    drafts = [scored(["d0", "d1"], [0.3, 0.6], 0.5), scored(["d0", "d1"], [0.3, 0.2], 0.5)]
    refined = [  # of draft 0 by both providers, then of draft 1
        scored(["a0", "a1", "b0", "b1"], [0.4, 0.7, 0.6, 0.6], 0.5),
        scored(["a0", "a1", "b0", "b1"], [0.2, 0.3, 0.1, 0.9], 0.5),
    ]
    value = refined_pairs(tmp_path / "out", stage(tmp_path / "d", drafts), stage(tmp_path / "r", refined), MODES, "")
    assert value["counts"] == {
        "rows in": 2, "kept": 3, "generation: kept": 1, "generation: not above u_0": 1,
        "refinement: kept": 2, "refinement: tie": 1, "refinement: not above its draft": 1,
    }  # fmt: skip
    assert opened(value)["prompt"] == [
        "q\n\nRationale:",
        "q\n\nDraft: d0\n\nRationale:",
        "q\n\nDraft: d1\n\nRationale:",
    ]
    assert opened(value)["chosen"] == [f" {text}\n\nAnswer:" for text in ("d1", "a1", "b1")]


# Rationales


class Scripted:
    """A writer of given completions."""

    def __init__(self, *completions: tuple[str, str]):
        self._completions = completions

    def complete(self, folder, model, prompts, options):
        assert options["sampling"]["stop"] == ("\n\nAnswer:",)
        return [{"text": text, "reason": reason, "error": "", "tokens": 1} for text, reason in self._completions]


def test_unusable_rationales_are_dropped_and_counted(tmp_path):
    writer = Scripted(("1 + 1 = 2.", "stop"), ("1 + 1", "length"), ("", "stop"), ("The Answer: 2", "stop"))
    options = {"sampling": {}}
    value = write_rationales(tmp_path, writer, tmp_path / "run", ["q"] * 4, MODES, options)
    assert value["counts"] == {
        "rows in": 4, "kept": 1, "cut off by max_tokens": 1, "empty": 1, "holds the answer mark": 1,
    }  # fmt: skip
    assert opened(value)["usable"] == [True, False, False, False]
    with pytest.raises(UserError, match=r"run wrote no rationale that can be used \(empty 2\)"):
        write_rationales(tmp_path, Scripted(("", "stop"), ("", "stop")), tmp_path / "run", ["q"] * 2, MODES, options)


# The choice


def test_the_provider_of_highest_likelihood_is_chosen(tmp_path):
    table = [
        scored(["a", "b"], [0.2, 0.6], 0.5),
        scored(["a", None], [0.7, None], 0.1),
        scored(["a", "b"], [None] * 2, None),
    ]
    answers = [
        stage(tmp_path / name, [{"correct": c} for c in right]) for name, right in (("a", [0, 1, 1]), ("b", [1, 0, 0]))
    ]
    choice = choose_provider(stage(tmp_path / "s", table), answers)
    assert choice["likelihood"] == pytest.approx([0.45, 0.3])
    assert (choice["chosen"], choice["u_0"]) == (0, pytest.approx(0.3))
    assert {name: choice["agreement"][name] for name in ("pairs", "agree", "auc")} == {"pairs": 1, "agree": 1, "auc": 1}


def test_agreement_by_hand():
    table = [scored(["a", "b"], [0.2, 0.6], 0), scored(["a", "b"], [0.5, 0.5], 0), scored(["a", "b"], [0.9, 0.1], 0)]
    found = agreement(table, [[True, True, True], [False, False, True]])
    assert (found["pairs"], found["agree"]) == (2, 0.5)
    low, high = pass_at_1([[0.0], [0.5]]).interval()
    assert (found["low"], found["high"]) == (low, high)
    assert (found["right"], found["wrong"]) == (4, 2)
    assert found["auc"] == pytest.approx((0 + 0 + 1 + 1 + 0 + 0.5 + 0 + 0) / 8)  # right: .2 .5 .9 .1, wrong: .6 .5


def test_the_area_under_the_curve_is_told_with_the_rationales_that_it_is_of():
    found = {"pairs": 0, "right": 3, "wrong": 40, "auc": 1.0}
    assert "for 3 right rationales beside 40 wrong ones, the probability is 1.00" in agreement_lines(found)[-2]
    assert not any("curve" in line for line in agreement_lines({**found, "right": 0, "auc": 0.5}))


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [("42", "42", True), ("$42.00", "42", True), ("41", "42", False), ("the bank.", "bank", True), ("", "bank", False)],
)
def test_answers_are_graded_as_numbers_or_texts(answer, gold, right):
    assert is_right(answer, gold) is right


def test_rows_of_a_stage_are_a_data_set(tmp_path):
    value = mixed_modes(tmp_path, ROWS[:1], MODES, False)
    assert Dataset.load_from_disk(str(value["rows"])).num_rows == 3


# The time that a run takes


def test_the_work_of_a_stage_follows_from_the_lengths_of_rows():
    def words(text, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": text.split()}

    rows = [
        {"question": "a b c", "rationale": "r s t u", "answer": "1 2"},
        {"question": "a", "rationale": "", "answer": "1"},
    ]
    lengths = Lengths.of(rows, words)
    assert lengths == Lengths(question=2.0, rationale=4.0, answer=1.5, given=0.5)
    assert lengths.tuned(False) == 3.5 + 0.5 * (6 + 7.5)  # I→A, and for half of the rows I→R and [I;R]→A
    assert lengths.tuned(True) == 3.5 + 0.5 * (6 + 7.5 + 10)
    assert (lengths.pair, lengths.scored(3)) == (10, 20)
    assert [lengths.prompt(mode) for mode in (ANSWER, RATIONALE, GIVEN)] == [2, 2, 6]
    pace = {"writing": {"start": 2.0, "prompt": 0.01, "token": 0.1}, "training": {"start": 1.0, "token": 0.5}}
    written = Work("writing", 30, 100)
    assert written.seconds(pace) == pytest.approx(2 + 3 + 1)
    # A token of a prompt is read in a tenth of the time, so 100 of them are the work of 10 written ones.
    assert (written.amount(pace), written.amount(None)) == (pytest.approx(40), 30)
    trained = Work("training", 30)
    assert (trained.seconds(pace), trained.amount(pace)) == (16, 30)
    assert Work().seconds(pace) == 1


@pytest.mark.slow
def test_the_pace_is_measured_once(tmp_path, model):
    config = small_config(tmp_path, model)
    writer, options = Writer(dtype="float32", decode_slots=2), {**config.utility.to_dict(), "dtype": "float32"}
    pace = measured_pace(tmp_path / "pace.json", writer, model, ROWS[:4], MODES, options, 40.0)
    for kind in ("writing", "scoring", "training"):
        assert 0 < pace[kind]["token"] < pace[kind]["start"]
    assert measured_pace(tmp_path / "pace.json", None, model, [], MODES, options, 40.0) == pace


@pytest.mark.slow
def test_scoring_is_measured_on_full_steps_and_prompts_apart_from_what_is_written(tmp_path, model, monkeypatch):
    config = small_config(tmp_path, model)
    options = {**config.utility.to_dict(), "dtype": "float32"}  # rows of 256 tokens
    asked = []
    monkeypatch.setattr(UtilityScorer, "_scored", lambda self, examples: asked.append(len(examples)) or [])
    writer = Writer(dtype="float32", decode_slots=2)
    monkeypatch.setattr(writer, "pace", lambda *_: {"start": 1.0, "prompt": 0.0, "token": 0.1})
    measured_pace(tmp_path / "pace.json", writer, model, ROWS[:4], MODES, options, 40.0)
    assert asked == [int(0.9 * 2 * 256 / 40)] * 2  # two rows of a step; the first pass compiles


def test_the_counts_of_training_tell_what_is_too_long(tmp_path):
    found = {
        "rows": {"read": 9, "examples": 6, "longer than 64 tokens": 3},
        "epoch": {"steps": 2, "tokens": 100},
        "steps": 5,
    }
    (tmp_path / "report.json").write_text(json.dumps(found))
    counts = {"rows in": 9, "kept": 6, "longer than 64 tokens": 3, "steps": 5, "tokens": 250}
    assert training_counts(tmp_path) == counts


@pytest.mark.parametrize(("rows", "benchmark"), [("hub:openai/gsm8k@train", "gsm8k"), ("cqa_train", "BENCHMARK")])
def test_the_next_commands_name_a_benchmark_only_where_the_rows_are_of_it(rows, benchmark):
    config = fields.base()
    config.data.rows = rows
    assert f"smallr evaluate {benchmark} --config.model=run" in next_commands(Path("run"), config)[1]
