"""Decides which columns the rows of a kind are read from: our own, and those of common data sets.

  kind         our columns                   also recognised
  sft          messages; prompt, completion  ShareGPT (conversations), Alpaca (instruction, input, output), question and
                                             response or answer, text
  preference   prompt, chosen, rejected      pairs without a prompt, Orca (question), Alpaca (instruction), ShareGPT
                                             (conversations), UltraFeedback (instruction, completions)
  unpaired     prompt, completion, label;    messages or conversations with a label
               prompt, chosen, rejected

Columns with our names come before any others, and `text` comes last. Where two readings are left, the set must be read
by name: `data.format`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from smallr.data.errors import DataError, nearest
from smallr.data.files import PROBLEM, separator_hint
from smallr.data.messages import Unusable
from smallr.data.repeats import continuation
from smallr.data.values import as_text

KINDS = ("preference", "unpaired", "sft", "completions", "rationale", "choice")
# Our columns of a kind; the sets are alternatives, all of one of them must be there.
REQUIRED = {
    "preference": (("chosen", "rejected"),),
    "unpaired": (("prompt", "completion", "label"), ("prompt", "chosen", "rejected")),
    "sft": (("messages",), ("prompt", "completion")),
    "completions": (("prompt", "completions"),),
    "rationale": (("question", "rationale", "answer"),),
    "choice": (("question", "label"),),
}
OPTIONAL = {
    "preference": ("prompt", "beta", "gap", "ref_chosen", "ref_rejected", "system", "tools"),
    "unpaired": ("beta", "system", "tools"),
    "sft": ("system", "tools"),
    "completions": ("system", "tools"),
    "rationale": (),
    "choice": (),
}
COLUMNS = tuple(dict.fromkeys(name for kind in KINDS for names in (*REQUIRED[kind], OPTIONAL[kind]) for name in names))
_SAMPLE = 200

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Format:
    """Describes one reading of rows.

    Attributes:
      name: what `data.format` calls it.
      title: what it is called in messages.
      kind: of the rows.
      needs: columns that must be there.
      takes: columns that are read where they are there, beside the kind's own optional ones.
      convert: makes our columns of a row; None where they are ours.
    """

    name: str
    title: str
    kind: str
    needs: tuple[str, ...]
    takes: tuple[str, ...] = ()
    convert: Callable[[Row], dict[str, Any]] | None = None

    @property
    def is_ours(self) -> bool:
        """Returns whether all columns have our names."""
        return self.convert is None


@dataclasses.dataclass(frozen=True)
class Reading:
    """Says how the rows of one set are read, in plain values, so that other processes can be told.

    Attributes:
      kind: of the rows.
      format: name of the format.
      columns: that are read.
      repeats: the completions of most rows repeat the prompt.
    """

    kind: str
    format: str
    columns: tuple[str, ...]
    repeats: bool = False

    def read(self, row: Row) -> Row:
        """Returns a row with our columns.

        Raises:
          Unusable: the row lacks what the format needs.
        """
        convert = _named(self.kind, self.format).convert
        return (
            row
            if convert is None
            else {name: row.get(name) for name in OPTIONAL[self.kind] if name in row} | convert(row)
        )

    def describe(self) -> str:
        """Returns what is read and scored, for the log."""
        title = _named(self.kind, self.format).title
        text = f"{title} ({', '.join(name for name in self.columns if name != PROBLEM)})"
        if self.kind == "sft":
            scored = "all tokens are scored" if self.format == "text" else "scored are the assistant's turns alone"
            text += "; " + (scored if "complet" not in self.format else "scored is the completion alone")
        return text + ("; the completions repeat the prompt, which is left out of them" if self.repeats else "")


def _with_input(row: Row, name: str) -> Any:
    """Returns an instruction and what it is about, as Alpaca's prompts join them.

    Raises:
      Unusable: messages, which there is no place in for an input.
    """
    instruction, about = as_text(row[name]), as_text(row.get("input"))
    if not (isinstance(about, str) and about.strip()):
        return instruction
    if not isinstance(instruction, str | None):
        raise Unusable("`input` beside a prompt of messages")
    return f"{instruction}\n\n{about}" if instruction and instruction.strip() else about


def _alpaca_prompt(row: Row) -> Any:
    """Returns the prompt, behind the earlier turns that `history` has as pairs."""
    prompt = _with_input(row, "instruction")
    if not row.get("history"):
        return prompt
    turns = [({"role": "user", "content": a}, {"role": "assistant", "content": b}) for a, b in row["history"]]
    return [*itertools.chain.from_iterable(turns), {"role": "user", "content": prompt}]


def _system(row: Row, name: str = "system_prompt") -> dict[str, Any]:
    return {"system": row[name]} if row.get(name) else {}


def _ultrafeedback(row: Row) -> dict[str, Any]:
    """Returns the answer with the best score against the one with the worst."""
    scores = ("fine-grained_score", "overall_score", "score")
    answers = [answer for answer in row["completions"] or () if isinstance(answer, Mapping) and answer.get("response")]
    name = next((name for name in scores if all(answer.get(name) is not None for answer in answers)), None)
    if len(answers) < 2 or name is None:
        raise Unusable("fewer than two completions with a response and a score")
    best, worst = (pick(answers, key=lambda answer: float(answer[name])) for pick in (max, min))
    if float(best[name]) == float(worst[name]):
        raise Unusable("all completions have the same score")
    return {"prompt": _with_input(row, "instruction"), "chosen": best["response"], "rejected": worst["response"]}


def _labelled_chat(name: str) -> Callable[[Row], dict[str, Any]]:
    def convert(row: Row) -> dict[str, Any]:
        messages = row[name] or []
        return {"prompt": messages[:-1], "completion": messages[-1:], "label": row["label"]}

    return convert


def _pair(row: Row, prompt: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": row["chosen"], "rejected": row["rejected"]}


_FORMATS = (
    Format("messages", "messages", "sft", ("messages",)),
    Format("prompt_completion", "prompt and completion", "sft", ("prompt", "completion")),
    Format(
        "prompt_input_completion",
        "prompt, input and completion",
        "sft",
        ("prompt", "input", "completion"),
        (),
        lambda row: {"prompt": _with_input(row, "prompt"), "completion": row["completion"]},
    ),
    Format("sharegpt", "ShareGPT", "sft", ("conversations",), (), lambda row: {"messages": row["conversations"]}),
    Format(
        "alpaca",
        "Alpaca",
        "sft",
        ("instruction", "output"),
        ("input", "history"),
        lambda row: {"prompt": _alpaca_prompt(row), "completion": row["output"]},
    ),
    Format(
        "question_response",
        "question and response",
        "sft",
        ("question", "response"),
        ("system_prompt",),
        lambda row: {"prompt": row["question"], "completion": row["response"]} | _system(row),
    ),
    Format(
        "question_answer",
        "question and answer",
        "sft",
        ("question", "answer"),
        (),
        lambda row: {"prompt": row["question"], "completion": row["answer"]},
    ),
    Format("text", "text", "sft", ("text",), (), lambda row: {"text": row["text"]}),
    Format("pairs", "pairs", "preference", ("prompt", "chosen", "rejected")),
    Format(
        "prompt_input_pairs",
        "pairs with an input",
        "preference",
        ("prompt", "input", "chosen", "rejected"),
        (),
        lambda row: _pair(row, _with_input(row, "prompt")),
    ),
    Format("implicit_prompt", "pairs that begin with their prompt", "preference", ("chosen", "rejected")),
    Format(
        "orca",
        "Orca",
        "preference",
        ("question", "chosen", "rejected"),
        ("system_prompt",),
        lambda row: _pair(row, row["question"]) | _system(row),
    ),
    Format(
        "alpaca_pairs",
        "Alpaca pairs",
        "preference",
        ("instruction", "chosen", "rejected"),
        ("input",),
        lambda row: _pair(row, _with_input(row, "instruction")),
    ),
    Format(
        "sharegpt_pairs",
        "ShareGPT pairs",
        "preference",
        ("conversations", "chosen", "rejected"),
        (),
        lambda row: _pair(row, row["conversations"]),
    ),
    Format("ultrafeedback", "UltraFeedback", "preference", ("instruction", "completions"), ("input",), _ultrafeedback),
    Format("labelled", "labelled completions", "unpaired", ("prompt", "completion", "label")),
    Format(
        "alpaca_labelled",
        "labelled Alpaca",
        "unpaired",
        ("instruction", "output", "label"),
        ("input", "history"),
        lambda row: {"prompt": _alpaca_prompt(row), "completion": row["output"], "label": row["label"]},
    ),
    Format(
        "prompt_input_labelled",
        "labelled completions with an input",
        "unpaired",
        ("prompt", "input", "completion", "label"),
        (),
        lambda row: {
            "prompt": _with_input(row, "prompt"),
            "completion": row["completion"],
            "label": row["label"],
        },
    ),
    Format("pairs", "pairs, two rows each", "unpaired", ("prompt", "chosen", "rejected")),
    Format("labelled_messages", "labelled messages", "unpaired", ("messages", "label"), (), _labelled_chat("messages")),
    Format(
        "sharegpt_labelled",
        "labelled ShareGPT",
        "unpaired",
        ("conversations", "label"),
        (),
        _labelled_chat("conversations"),
    ),
    *(Format(kind, kind, kind, REQUIRED[kind][0]) for kind in ("completions", "rationale", "choice")),
)


def _named(kind: str, name: str) -> Format:
    return next(each for each in _FORMATS if each.kind == kind and each.name == name)


def format_names(kind: str) -> tuple[str, ...]:
    """Returns the names that `data.format` may have for a kind."""
    return tuple(each.name for each in _FORMATS if each.kind == kind)


def recognise(kind: str, present: Sequence[str], source: str, name: str = "") -> Format:
    """Finds the format of rows by their columns.

    Args:
      kind: of the rows.
      present: their columns.
      source: what they are called in messages.
      name: the format, if it is given.

    Raises:
      DataError: an unknown kind or format, a column that is missing, or several formats that fit.
    """
    if kind not in KINDS:
        raise DataError(f"row kind {kind!r} must be one of: {', '.join(KINDS)}{nearest(kind, KINDS)}")
    if name:
        if name not in format_names(kind):
            known = format_names(kind)
            raise DataError(f"format {name!r} of {kind} rows must be one of: {', '.join(known)}{nearest(name, known)}")
        found = _named(kind, name)
        if missing := [column for column in found.needs if column not in present]:
            raise DataError(
                f"{source}: format {name} needs the column {missing[0]!r}; present {', '.join(present)}"
                f"{separator_hint(present)}"
            )
        return found
    fitting = [each for each in _FORMATS if each.kind == kind and set(each.needs) <= set(present)]
    if not fitting:
        raise _missing(kind, present, source)
    # What reads fewer of the same columns gives way, then other names to ours, and text to everything.
    fitting = [a for a in fitting if not any(set(a.needs) < set(b.needs) for b in fitting)]
    ours = [each for each in fitting if each.is_ours or each.name.startswith("prompt_input_")]
    left = ours or [each for each in fitting if each.name != "text"] or fitting
    if len(left) > 1:
        choices = "; ".join(f"{each.name} reads {', '.join(each.needs)}" for each in left)
        raise DataError(
            f"{source}: {kind} rows with these columns can be read in {len(left)} ways: {choices}. Choose one with "
            "--config.data.format=NAME (of smallr score: --format=NAME)"
        )
    return left[0]


def _missing(kind: str, present: Sequence[str], source: str) -> DataError:
    wanted = " or ".join(", ".join(names) for names in REQUIRED[kind])
    if hint := separator_hint(present):
        return DataError(f"{source}: {kind} rows need the columns {wanted}; present {', '.join(present)}{hint}")
    # Of several alternatives the one with most columns present is what the user is likely to mean, else the one that
    # takes most of them.
    closest = max(
        REQUIRED[kind], key=lambda names: (len(set(names) & set(present)), len(names) <= len(present), len(names))
    )
    missing = [name for name in closest if name not in present]
    others = [", ".join(each.needs) for each in _FORMATS if each.kind == kind and not each.is_ours]
    flags = " ".join(f"--config.data.columns.{name}=NAME" for name in missing)
    also = f" Also read: {'; '.join(others)}." if others else ""
    return DataError(
        f"{source}: {kind} rows need the columns {wanted}; missing {', '.join(map(repr, missing))}, "
        f"present {', '.join(present)}{nearest(missing[0], present) or '.'} "
        f"Map columns with {flags} (smallr score: --columns={missing[0]}=NAME).{also}"
    )


def read_as(kind: str, present: Sequence[str], first: Iterable[Row], source: str, name: str = "") -> Reading:
    """Decides how the rows of a set are read.

    Args:
      kind: of the rows.
      present: their columns.
      first: some of the rows.
      source: what they are called in messages.
      name: the format, if it is given.

    Raises:
      DataError: as `recognise`.
    """
    found = recognise(kind, present, source, name)
    wanted = dict.fromkeys((*found.needs, *found.takes, *OPTIONAL[kind], PROBLEM))
    columns = tuple(column for column in wanted if column in present)
    reading = Reading(kind, found.name, columns)
    if kind not in ("preference", "unpaired", "sft", "completions") or found.name == "text":
        return reading
    return dataclasses.replace(reading, repeats=_repeat(itertools.islice(first, _SAMPLE), reading))


def _repeat(rows: Iterable[Row], reading: Reading) -> bool:
    """Returns whether in more than half of the rows of text all completions begin with the prompt."""
    seen = repeated = 0
    for row in rows:
        try:
            row = reading.read(row)
        except Unusable:
            continue
        completions = [row.get(name) for name in ("completion", "chosen", "rejected") if row.get(name)]
        completions += row.get("completions") or ()
        prompt = row.get("prompt")
        if (
            isinstance(prompt, str)
            and prompt.strip()
            and completions
            and all(isinstance(completion, str) for completion in completions)
        ):
            seen += 1
            repeated += all(continuation(prompt, completion) is not None for completion in completions)
    return 2 * repeated > seen
