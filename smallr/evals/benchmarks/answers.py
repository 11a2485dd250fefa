"""Defines benchmarks that are answered in text: mathematics, options, words."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence

from smallr.evals.benchmarks.base import Generation, GraderOptions, Question, Row, Source
from smallr.evals.graders import matching
from smallr.evals.graders.base import Grader
from smallr.evals.graders.symbolic import Symbolic

_BOX = "Please reason step by step, and put your final answer within \\boxed{}."
_LETTER = 'Think step by step, then end with "The answer is (X)", where X is the letter of the right option.'


def _symbolic(options: GraderOptions) -> Grader:
    return Symbolic(options.workers, options.seconds or 10.0)


def _numbers(_: GraderOptions) -> Grader:
    return matching.numbers()


def _first(row: Row, *names: str) -> object:
    """Returns the first of these columns that the row has."""
    for name in names:
        if row.get(name) not in (None, ""):
            return row[name]
    raise KeyError(f"none of {', '.join(names)}")


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError(f"expected text, found {value!r}")
    return value.strip()


def _number(value: object) -> str:
    """Returns a gold number as text."""
    text = str(value)
    if matching.to_decimal(text) is None:
        raise ValueError(f"the gold answer {text[:40]!r} is no number")
    return text


def _gsm8k(row: Row) -> Question:
    _, mark, answer = _text(row["answer"]).rpartition("####")
    if not mark:
        raise ValueError("the answer has no ####")
    solution = re.sub("<<.*?>>", "", _text(row["answer"]))  # the calculator's marks are no part of an answer
    return Question(f"{_text(row['question'])}\n{_BOX}", _number(answer.strip()), solution)


def _svamp(row: Row) -> Question:
    body, question = _text(row["Body"]), _text(row["Question"])
    joined = f"{body} {question}" if body.endswith((".", "?", "!")) else f"{body}. {question}"
    return Question(f"{joined}\n{_BOX}", _number(row["Answer"]))


def _word_problem(row: Row) -> Question:
    return Question(f"{_text(row['question'])}\n{_BOX}", _number(_first(row, "answer", "final_ans")))


def _competition(row: Row) -> Question:
    solution = row.get("solution") or ""
    return Question(f"{_text(row['problem'])}\n{_BOX}", _text(str(row["answer"])), str(solution).strip())


def _aqua(row: Row) -> Question:
    options = [_text(option).replace(")", ") ", 1) for option in row["options"]]
    gold, rationale = _letter(row["correct"], "ABCDE"), str(row.get("rationale") or "").strip()
    solution = f"{rationale}\nThe answer is ({gold})." if rationale else ""
    return Question(f"{_text(row['question'])}\n" + "\n".join(options) + f"\n{_LETTER}", gold, solution)


def _aqua_texts(row: Row) -> dict[str, str]:
    """Maps letters to the texts of AQuA's options."""
    found = (str(option).partition(")") for option in row.get("options") or ())
    return {letter.strip(" ("): text.strip() for letter, mark, text in found if mark}


def _listed_texts(row: Row) -> dict[str, str]:
    """Maps letters to the texts of options that the question lists."""
    listed = re.findall(r"\(([A-G])\)\s*([^\n(]+)", str(row.get("question") or ""))
    return {letter: text.strip(" ,.") for letter, text in listed}


def _letter(value: object, letters: str) -> str:
    letter = _text(value).strip("()").upper()
    if letter not in tuple(letters):
        raise ValueError(f"the gold answer {value!r} must be one of: {letters}")
    return letter


def _lettered(row: Row) -> Question:
    """Returns a question that lists its options itself."""
    return Question(f"{_text(row['question'])}\n{_LETTER}", _letter(row["answer"], "ABCDEFG"))


def _gpqa_texts(row: Row) -> dict[str, str]:
    """Maps letters to texts in an order that depends on the question alone, so that every model sees the same one."""
    question, right = _text(row["Question"]), _text(row["Correct Answer"])
    options = [right, *(_text(row[f"Incorrect Answer {number}"]) for number in (1, 2, 3))]
    seed = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big")
    random.Random(seed).shuffle(options)
    return dict(zip("ABCD", options, strict=True))


def _gpqa(row: Row) -> Question:
    texts, right = _gpqa_texts(row), _text(row["Correct Answer"])
    listed = "\n".join(f"({letter}) {option}" for letter, option in texts.items())
    gold = next(letter for letter, option in texts.items() if option == right)
    return Question(f"{_text(row['Question'])}\n{listed}\n{_LETTER}", gold)


def _one_of(words: Sequence[str]) -> Callable[[Row], Question]:
    listed = " or ".join(f'"{word}"' for word in words)

    def read(row: Row) -> Question:
        gold = _first(row, "answer", "targets")
        gold = {True: "yes", False: "no"}.get(gold, gold) if isinstance(gold, bool) else _text(gold).lower()
        if gold not in words:
            raise ValueError(f"the gold answer {gold!r} must be one of: {words}")
        question = _text(_first(row, "question", "inputs"))
        return Question(f'{question}\nThink step by step, then end with "The answer is" and {listed}.', gold)

    return read


def _letters(row: Row) -> Question:
    question = _text(row["question"])
    return Question(
        f'{question}\nThink step by step, then end with "The answer is" and the letters.', _text(row["answer"])
    )


_COPY = "a copy is in the repository itsnamgyu/reasoning-teacher, folder dataset"
_YES_NO = ("yes", "no")

BENCHMARKS = (
    Generation(name="gsm8k", source=Source("openai/gsm8k:main"), read=_gsm8k, grader=_numbers),
    Generation(
        name="math500", source=Source("HuggingFaceH4/MATH-500"), read=_competition, grader=_symbolic, max_tokens=2048
    ),
    Generation(
        name="aime24",
        source=Source("HuggingFaceH4/aime_2024", "train"),
        read=_competition,
        grader=_symbolic,
        max_tokens=8192,
    ),
    Generation(name="svamp", source=Source("ChilleD/SVAMP"), read=_svamp, grader=_numbers, max_tokens=512),
    Generation(
        name="multiarith", source=Source("ChilleD/MultiArith"), read=_word_problem, grader=_numbers, max_tokens=512
    ),
    Generation(name="addsub", source=Source(advice=_COPY), read=_word_problem, grader=_numbers, max_tokens=512),
    Generation(name="single_eq", source=Source(advice=_COPY), read=_word_problem, grader=_numbers, max_tokens=512),
    Generation(
        name="aqua",
        source=Source("deepmind/aqua_rat:raw"),
        read=_aqua,
        grader=lambda _: matching.options("ABCDE", _aqua_texts),
    ),
    Generation(
        name="gpqa_diamond",
        source=Source("Idavidrein/gpqa:gpqa_diamond", "train", "it is gated: accept its terms on the hub"),
        read=_gpqa,
        grader=lambda _: matching.options("ABCD", _gpqa_texts),
        max_tokens=4096,
    ),
    Generation(
        name="date_understanding",
        source=Source(advice=_COPY),
        read=_lettered,
        grader=lambda _: matching.options("ABCDEF", _listed_texts),
        max_tokens=512,
    ),
    Generation(
        name="shuffled_objects",
        source=Source(advice=_COPY),
        read=_lettered,
        grader=lambda _: matching.options("ABCDEFG", _listed_texts),
        max_tokens=512,
    ),
    Generation(
        name="coin_flip",
        source=Source(advice=_COPY),
        read=_one_of(_YES_NO),
        grader=lambda _: matching.words(_YES_NO),
        max_tokens=512,
    ),
    Generation(
        name="strategyqa_text",
        source=Source("ChilleD/StrategyQA"),
        read=_one_of(_YES_NO),
        grader=lambda _: matching.words(_YES_NO),
        max_tokens=512,
    ),
    Generation(
        name="last_letters",
        source=Source(advice=_COPY),
        read=_letters,
        grader=lambda _: matching.texts(),
        max_tokens=512,
    ),
)
