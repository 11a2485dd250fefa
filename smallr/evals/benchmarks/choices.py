"""Defines benchmarks by likelihood. Contexts and continuations are those of lm-evaluation-harness where it has the task.

Each reads the hub's columns and the plain ones `question`, `choices` (texts) and `gold` (an index).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from smallr.evals.benchmarks.base import Choice, Likelihood, Row, Source


def _choice(context: str, texts: Sequence[str], gold: int) -> Choice:
    """Makes a question of one context, with a space between it and each option."""
    texts = tuple(texts)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("an option is no text")
    return Choice((context,) * len(texts), tuple(f" {text}" for text in texts), texts, gold)


def _labelled(choices: object, answer: str) -> tuple[list[str], int]:
    """Returns options and the right one's index, of columns {label, text} or of a list of such."""
    if isinstance(choices, Mapping):
        labels, texts = list(choices["label"]), list(choices["text"])
    else:
        labels, texts = ([choice[key] for choice in choices] for key in ("label", "text"))
    return texts, labels.index(answer.strip())


def _plain(row: Row) -> tuple[str, list[str], int] | None:
    """Returns question, options and index of a row in plain columns; None for one in the hub's."""
    return (row["question"], list(row["choices"]), int(row["gold"])) if "gold" in row else None


def _commonsense_qa(row: Row) -> Choice:
    question = row["question"]
    inner = question if isinstance(question, Mapping) else {"stem": question, "choices": row["choices"]}
    texts, gold = _labelled(inner["choices"], row["answerKey"])
    letters = "ABCDE"[: len(texts)]
    listed = "".join(f"\n{letter}. {text}" for letter, text in zip(letters, texts, strict=True))
    return _choice(f"Question: {inner['stem'].strip()}{listed}\nAnswer:", letters, gold)


def _arc(row: Row) -> Choice:
    question, texts, gold = _plain(row) or (row["question"], *_labelled(row["choices"], row["answerKey"]))
    return _choice(f"Question: {question}\nAnswer:", texts, gold)


def _openbookqa(row: Row) -> Choice:
    question, texts, gold = _plain(row) or (row["question_stem"], *_labelled(row["choices"], row["answerKey"]))
    return _choice(question, texts, gold)


def _piqa(row: Row) -> Choice:
    question, texts, gold = _plain(row) or (row["goal"], [row["sol1"], row["sol2"]], int(row["label"]))
    return _choice(f"Question: {question}\nAnswer:", texts, gold)


def _winogrande(row: Row) -> Choice:
    """Makes a partial evaluation (arXiv 1806.02847): the options stand in the context, the rest of the sentence is scored."""
    sentence, options, gold = _plain(row) or (row["sentence"], [row["option1"], row["option2"]], int(row["answer"]) - 1)
    before, mark, after = sentence.partition("_")
    if not mark:
        raise ValueError("the sentence has no _")
    rest = f" {after.strip()}"
    return Choice(tuple(before + option for option in options), (rest,) * len(options), tuple(options), gold)


def _hellaswag(row: Row) -> Choice:
    if plain := _plain(row):
        return _choice(*plain)
    context = _cleaned(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
    return _choice(context, [_cleaned(ending) for ending in row["endings"]], int(row["label"]))


def _cleaned(text: str) -> str:
    """Returns HellaSwag's texts without the marks of WikiHow."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _siqa(row: Row) -> Choice:
    question, texts, gold = _plain(row) or (
        f"{row['context']} {row['question']}",
        [row["answerA"], row["answerB"], row["answerC"]],
        int(row["label"]) - 1,
    )
    return _choice(f"Q: {question}\nA:", texts, gold)


def _boolq(row: Row) -> Choice:
    if plain := _plain(row):  # passage and question are in one
        context, texts, gold = plain
        return _choice(context, texts, gold)
    return _choice(f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:", ["no", "yes"], int(row["label"]))


def _strategyqa(row: Row) -> Choice:
    answer = row["answer"]
    gold = {True: 1, False: 0, "yes": 1, "no": 0}[answer if isinstance(answer, bool) else answer.strip().lower()]
    return _choice(f"Question: {row['question'].strip()}\nAnswer:", ["no", "yes"], gold)


def _nli(row: Row) -> Choice:
    """Asks for entailment, neutral or contradiction as lm-evaluation-harness asks ANLI."""
    label = row["label"]
    gold = ("entailment", "neutral", "contradiction").index(label) if isinstance(label, str) else int(label)
    context = f"{row['premise']}\nQuestion: {row['hypothesis']} True, False, or Neither?\nAnswer:"
    return _choice(context, ["True", "Neither", "False"], gold)


def _of(name: str, hub: str, split: str, read, metric: str = "acc") -> Likelihood:
    return Likelihood(name=name, source=Source(hub, split), read=read, metric=metric)


BENCHMARKS = (
    _of("commonsense_qa", "tau/commonsense_qa", "validation", _commonsense_qa),
    _of("arc_easy", "allenai/ai2_arc:ARC-Easy", "test", _arc),
    _of("arc_challenge", "allenai/ai2_arc:ARC-Challenge", "test", _arc, "acc_norm"),
    _of("openbookqa", "allenai/openbookqa:main", "test", _openbookqa, "acc_norm"),
    _of("piqa", "baber/piqa", "validation", _piqa),
    _of("winogrande", "allenai/winogrande:winogrande_xl", "validation", _winogrande),
    _of("hellaswag", "Rowan/hellaswag", "validation", _hellaswag, "acc_norm"),
    _of("siqa", "lighteval/siqa", "validation", _siqa),
    _of("boolq", "aps/super_glue:boolq", "validation", _boolq),
    _of("strategyqa", "ChilleD/StrategyQA", "test", _strategyqa),
    _of("esnli", "stanfordnlp/snli", "test", _nli),  # e-SNLI adds explanations to SNLI's rows
    _of("anli_r1", "facebook/anli", "test_r1", _nli),
    _of("anli_r2", "facebook/anli", "test_r2", _nli),
    _of("anli_r3", "facebook/anli", "test_r3", _nli),
)
