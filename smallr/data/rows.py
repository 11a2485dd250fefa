"""Reads raw rows as checked rows of one of six kinds.

  preference  `chosen`, `rejected` and `prompt`: text, or chat messages. Without `prompt` the two completions share a first
              part, which becomes the prompt. Optional `beta` (a number >= 0) or `gap` (small, medium, large), and
              `ref_chosen`, `ref_rejected`: log-probs of the two under a reference.
  unpaired    `prompt`, `completion` and `label` (true: desirable), optional `beta`; or `prompt`, `chosen` and
              `rejected`, which make two rows.
  sft         `prompt` and `completion` (text or messages), or `messages`: every assistant turn is scored.
  completions `prompt` and `completions`: a list of texts, of chats, or of lists of segments, texts that follow one another
              (see `segments`). Rows may have different numbers of them.
  rationale   `question`, `rationale`, `answer` (text).
  choice      `question` (text) and `label` (1 or true: the second of two choices is right, 0 or false: the first).

Rows with completions may have `system`, the text of a system message, and `tools`, definitions for the chat template.
`formats` says which other columns are recognised, `messages` which forms of chats. In a chat, texts that are transcripts
("Human: … Assistant: …") are read as the turns they hold; where completions repeat the prompt, it is
left out of them.

Numbers of completions and of tokens are read as `completion_columns` says. A mistake in the set-up (a column missing or
of a wrong type, an unknown gap, a beta that is negative or NaN) raises `DataError`. A single row that cannot be trained
on (empty, equal completions, ...) is counted in the `DropReport`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from smallr.data.drops import DropReport
from smallr.data.errors import DataError, shorten
from smallr.data.files import PROBLEM
from smallr.data.formats import Reading
from smallr.data.messages import (
    Message,
    Text,
    Unusable,
    as_chat,
    is_said,
    is_scored,
    read_tools,
    text_or_chat,
    transcript,
    unread_keys,
)
from smallr.data.repeats import answer_of, continuation, is_sure
from smallr.data.segments import is_segmented
from smallr.data.values import Cell, as_text, beta, choice_index, label, number, plain_text

if TYPE_CHECKING:
    from smallr.data.completion_columns import CompletionColumns, CompletionNumbers

GAPS = ("small", "medium", "large")


@dataclasses.dataclass(frozen=True)
class TextRow:
    """Holds a row of any number of completions: two (chosen, rejected) of pairs, one of SFT and KTO, none of choices.

    Attributes:
      row: index in the source.
      prompt, completions: all text, or all chat messages. Assistant turns of a chat completion are scored. Where the
        prompt ends in an assistant's message, the completions go on from there. Without a prompt all is scored.
      columns: numbers of the row; the same keys in all rows of a kind.
      numbers: numbers of each completion; empty if the set has none.
      system: text of the system message that the prompt lacks; empty if there is none.
      tools: definitions for the chat template.
    """

    row: int
    prompt: Text
    completions: tuple[Text, ...]
    columns: Mapping[str, float]
    numbers: tuple[CompletionNumbers, ...] = ()
    system: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class RationaleRow:
    """Holds a question, its answer and why; `rationale` is None where the teacher gave none."""

    row: int
    question: str
    answer: str
    rationale: str | None


@dataclasses.dataclass(frozen=True)
class _Raw:
    """Holds a row as it was read, with how its values are taken.

    Attributes:
      values: by column.
      row: its number among those that were loaded.
      place: the source and where in it, for messages.
      chat: plain text will be wrapped in a chat.
      repeats: completions that begin with the prompt repeat it.
      note: counts the row as kept in another form.
    """

    values: Mapping[str, Any]
    row: int
    place: str
    chat: bool
    repeats: bool
    note: Callable[[str], None]

    def cell(self, column: str) -> Cell:
        return Cell(self.place, column)

    def text(self, column: str) -> Text:
        """Returns the text or the messages of a column, not empty."""
        return self.filled(self.values[column], column, column)

    def filled(self, value: Any, column: str, name: str) -> Text:
        """Returns text or messages of a column, not empty; what they hold in vain is counted."""
        text = text_or_chat(value, self.cell(column))
        if unread := unread_keys(text):
            self.note(
                f"not read in messages: {', '.join(map(repr, unread))}; `weight: 0` says that a turn is not scored"
            )
        return _filled(text, name)

    def label(self) -> float:
        """Returns the label, 1 or 0."""
        found = label(self.values["label"], self.cell("label"))
        if math.isnan(found):
            raise Unusable("no label")
        return found

    def prompt(self) -> Text:
        """Returns the prompt; a transcript is its turns."""
        prompt = self.text("prompt")
        turns = transcript(prompt) if self.chat and isinstance(prompt, str) else None
        return prompt if turns is None else _filled(turns, "prompt")


def parse_rows(
    rows: Iterable[Mapping[str, Any]],
    kind: str,
    report: DropReport,
    start: int = 0,
    numbers: CompletionColumns | None = None,
    *,
    reading: Reading | None = None,
    chat: bool = False,
) -> Iterator[TextRow | RationaleRow]:
    """Checks raw rows one by one; what cannot be used is counted in `report`.

    Args:
      rows: of the source, from row `start` on.
      kind: one of `formats.KINDS`.
      report: counts them all.
      start: number of the first.
      numbers: which columns hold numbers of completions and tokens.
      reading: how rows are read; by default their columns have our names.
      chat: plain text will be wrapped in a chat.

    Raises:
      DataError: a value of a wrong type, an unknown gap, a beta that is negative or not finite.
    """
    reading = reading or Reading(kind, "", ())
    for index, row in enumerate(rows, start):
        report.total += 1
        try:
            if row.get(PROBLEM):
                raise Unusable(row[PROBLEM].rpartition(" (")[0])
            values = reading.read(row) if reading.format else row
            raw = _Raw(values, index, report.place(index), chat, reading.repeats, _noting(report, index))
            parsed = _PARSERS[kind](raw)
        except Unusable as reason:
            report.drop(index, str(reason))
            continue
        several = parsed if isinstance(parsed, tuple) else (parsed,)
        report.total += len(several) - 1
        for each in several:
            if isinstance(each, RationaleRow):
                if each.rationale is None:
                    report.note(index, "no rationale: answer loss only")
                yield each
            else:
                yield _with_numbers(_with_context(each, raw), row, numbers, raw.place)


def _noting(report: DropReport, row: int) -> Callable[[str], None]:
    return lambda reason: report.note(row, reason)


def _with_numbers(row: TextRow, values: Mapping[str, Any], numbers: CompletionColumns | None, place: str) -> TextRow:
    if numbers is None:
        return row
    read = numbers.read(values, len(row.completions), place)
    return dataclasses.replace(row, numbers=read)


def _with_context(row: TextRow, raw: _Raw) -> TextRow:
    """Adds what the columns `system` and `tools` say."""
    system = plain_text(raw.values.get("system"), raw.cell("system"))
    tools = read_tools(raw.values.get("tools"), raw.cell("tools"))
    if not (system or tools):
        return row
    if not raw.chat and isinstance(row.prompt, str):
        raw.note("`system` and `tools` are not read with data.chat=False: texts stay as they are")
        return row
    if system and as_chat(row.prompt, "user")[0]["role"] == "system":
        raw.note("`system` is not read: the messages have a system message of their own")
        system = ""
    return dataclasses.replace(row, system=system, tools=tools)


def _preference(raw: _Raw) -> TextRow:
    columns = {
        "beta": beta(raw.values.get("beta"), raw.cell("beta")),
        "gap": float(choice_index(raw.values.get("gap"), GAPS, raw.cell("gap"))),
    }
    for name in ("ref_chosen", "ref_rejected"):
        if name in raw.values:
            columns[name] = number(raw.values[name], raw.cell(name))
    chosen, rejected = raw.text("chosen"), raw.text("rejected")
    prompt = raw.prompt() if "prompt" in raw.values else None
    if chosen == rejected:
        raise Unusable("chosen equal to rejected")
    chosen, rejected = _without_prompt(raw, (chosen, rejected))
    if prompt is None and raw.chat and isinstance(chosen, str) and isinstance(rejected, str):
        chosen, rejected = _transcripts(chosen, rejected)
    if all(isinstance(text, str) for text in (prompt or "", chosen, rejected)):
        if prompt is None:
            prompt, chosen, rejected = _split_texts(chosen, rejected)
    else:
        chat = None if prompt is None else as_chat(prompt, "user")
        chosen, rejected = (_answer(raw, text) for text in (chosen, rejected))
        prompt, chosen, rejected = _split_chats(chat, chosen, rejected)
    for name, value in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected)):
        _filled(value, name)
    return TextRow(raw.row, prompt, (_answered(chosen), _answered(rejected)), columns)


def _unpaired(raw: _Raw) -> tuple[TextRow, ...]:
    prompt = raw.prompt()
    labels = {"completion": raw.label()} if "completion" in raw.values else {"chosen": 1.0, "rejected": 0.0}
    row_beta = beta(raw.values.get("beta"), raw.cell("beta"))
    completions = _completed(raw, prompt, [raw.text(name) for name in labels])
    start = prompt if isinstance(completions[0], str) else as_chat(prompt, "user")
    return tuple(
        TextRow(raw.row, start, (_answered(completion),), {"label": value, "beta": row_beta})
        for completion, value in zip(completions, labels.values(), strict=True)
    )


def mismatched(rows: Sequence[TextRow]) -> Iterator[TextRow]:
    """Makes unpaired rows, each with a second completion: one that was written for another prompt.

    Rows of one prompt stand together in a ring, and completions move on by as many places as the commonest prompt has
    rows: no completion meets its own prompt, and each is taken once, so that over the set they are the same
    completions in both roles. With all prompts different this is the published shift by one (arXiv 2402.01306,
    section 4.1). The rows keep their order.

    Raises:
      DataError: a prompt has more than half of the rows.
    """
    groups: dict[Text, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(row.prompt if isinstance(row.prompt, str) else repr(row.prompt), []).append(i)
    ring = [i for group in groups.values() for i in group]
    shift = max(map(len, groups.values()), default=0)
    if 2 * shift > len(ring):
        raise DataError(
            f"the KL estimate of unpaired rows needs completions of other prompts, but {shift} of {len(ring)} rows have one "
            "prompt; add rows with other prompts"
        )
    donor = {i: ring[position - shift] for position, i in enumerate(ring)}
    for i, row in enumerate(rows):
        prompt, own, other = row.prompt, row.completions[0], rows[donor[i]].completions[0]
        if isinstance(own, str) != isinstance(other, str):
            prompt = as_chat(prompt, "user")
            own, other = as_chat(own, "assistant"), as_chat(other, "assistant")
        yield dataclasses.replace(row, prompt=prompt, completions=(own, other))


def _sft(raw: _Raw) -> TextRow:
    if "messages" in raw.values:
        messages = raw.text("messages")
        if isinstance(messages, str):
            raise raw.cell("messages").error(
                f"expected a list of messages, found text {shorten(messages)}; text goes into prompt and completion"
            )
        first = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
        prompt, completion = messages[:first], messages[first:]
        if not completion:
            raise Unusable("no assistant turn")
        return TextRow(raw.row, _filled(prompt, "prompt"), (_answered(completion),), {})
    if "text" in raw.values:
        text = raw.text("text")
        if not isinstance(text, str):
            raise raw.cell("text").error(f"expected text, found {shorten(text)}; messages go into messages")
        return TextRow(raw.row, "", (text,), {})
    prompt = raw.prompt()
    (completion,) = _completed(raw, prompt, [raw.text("completion")])
    if not isinstance(completion, str):
        prompt = as_chat(prompt, "user")
    return TextRow(raw.row, _filled(prompt, "prompt"), (_answered(completion),), {})


def _completions(raw: _Raw) -> TextRow:
    cell, values = raw.cell("completions"), raw.values["completions"]
    prompt = raw.prompt()
    if isinstance(values, str) or not isinstance(values or (), Sequence):
        raise cell.error(f"expected a list of texts or of chats, found {shorten(values)}")
    joined = ["".join(value) if is_segmented(value) else value for value in values or ()]
    completions = [raw.filled(value, "completions", "completion") for value in joined]
    if not completions:
        raise Unusable("no completion")
    completions = _completed(raw, prompt, completions)
    if not isinstance(completions[0], str):
        prompt = as_chat(prompt, "user")
    return TextRow(raw.row, prompt, tuple(map(_answered, completions)), {})


def _rationale(raw: _Raw) -> RationaleRow:
    values = {name: plain_text(raw.values[name], raw.cell(name)) for name in ("question", "answer", "rationale")}
    for name in ("question", "answer"):
        _filled(values[name], name)
    return RationaleRow(raw.row, values["question"], values["answer"], values["rationale"] or None)


def _choice(raw: _Raw) -> TextRow:
    question = _filled(plain_text(raw.values["question"], raw.cell("question")), "question")
    return TextRow(raw.row, question, (), {"label": raw.label()})


_PARSERS = {
    "preference": _preference,
    "unpaired": _unpaired,
    "sft": _sft,
    "completions": _completions,
    "rationale": _rationale,
    "choice": _choice,
}


def _completed(raw: _Raw, prompt: Text, completions: Sequence[Text]) -> list[Text]:
    """Reads the completions of a prompt: all text if all is text, else all chats."""
    completions = [_filled(text, "completion") for text in _without_prompt(raw, completions)]
    if all(isinstance(text, str) for text in (prompt, *completions)):
        return completions
    return [_answer(raw, text) for text in completions]


def _without_prompt(raw: _Raw, completions: Sequence[Text]) -> Sequence[Text]:
    """Returns the completions without the prompt, where they are text that repeats it.

    It is compared as it was written: in a chat, a transcript has become turns.
    """
    prompt = as_text(raw.values.get("prompt"))
    if not all(isinstance(text, str) for text in (prompt, *completions)):
        return completions
    rests = [continuation(prompt, completion) for completion in completions]
    if all(rest is None for rest in rests):
        return completions
    if None in rests or not (raw.repeats or is_sure(prompt, rests)):
        raw.note("a completion begins with the prompt, perhaps by chance: it is scored as a part of it")
        return completions
    if not raw.repeats:
        raw.note("the completions begin with the prompt, where most rows' do not: it is left out of them")
    return [answer_of(rest) for rest in rests] if raw.chat else rests


def _answer(raw: _Raw, text: Text) -> tuple[Message, ...]:
    """Returns an answer in a chat; that of a transcript has white space around it that is not the answer's."""
    if isinstance(text, str) and raw.chat and isinstance(raw.values.get("prompt"), str):
        prompt = raw.values["prompt"].rstrip()
        text = text.strip() if prompt.endswith("Assistant:") else text
    return as_chat(text, "assistant")


def _transcripts(chosen: str, rejected: str) -> tuple[Text, Text]:
    """Splits two transcripts into turns. Where a chat begins and ends in any other text, nobody can know."""
    turns = transcript(chosen), transcript(rejected)
    if None in turns:
        raise Unusable(
            "text without a prompt: in a chat nothing tells where the user's turn ends; give a column `prompt`, or "
            "messages, or set data.chat=False"
        )
    return turns


def _filled(text: Text, name: str) -> Text:
    filled = bool(text.strip()) if isinstance(text, str) else any(map(is_said, text))
    if not filled:
        raise Unusable(f"empty {name}")
    return text


def _answered(completion: Text) -> Text:
    """Checks that a chat completion has assistant turns, none of them empty, and one that is scored."""
    if isinstance(completion, str):
        return completion
    turns = [message for message in completion if message["role"] == "assistant"]
    if not turns:
        raise Unusable("no assistant turn")
    if not all(map(is_said, turns)):
        raise Unusable("empty assistant turn")
    if not any(map(is_scored, turns)):
        raise Unusable("all assistant turns have weight 0")
    return completion


def common_length(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Returns the length of the common beginning of two sequences."""
    limit = min(len(a), len(b))
    return limit if a[:limit] == b[:limit] else next(i for i in range(limit) if a[i] != b[i])


def _split_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Returns the prompt and completions of two texts that begin alike.

    The cut lies before the last white space of the common part: a word that both completions happen to begin with belongs to
    the completions, and most tokenizers glue a space to the word that follows it.
    """
    shared = common_length(chosen, rejected)
    while shared and not chosen[shared - 1].isspace():
        shared -= 1
    shared = len(chosen[:shared].rstrip())
    if not shared:
        raise Unusable("chosen and rejected share no first part to be the prompt")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _split_chats(
    prompt: tuple[Message, ...] | None, chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], ...]:
    """Returns the prompt and completions of two chats, which may repeat the prompt (`prompt` given) or imply it (None)."""
    if prompt is not None and all(answer[0]["role"] not in ("system", "user") for answer in (chosen, rejected)):
        return prompt, chosen, rejected
    limit = min(len(chosen), len(rejected)) - 1  # a message is left for each completion
    shared = common_length(chosen[:limit], rejected[:limit])
    common = chosen[:shared]
    if not common:
        raise Unusable("chosen and rejected share no first part to be the prompt")
    if prompt is not None and not any(common[i : i + len(prompt)] == prompt for i in range(shared)):
        raise Unusable("chosen and rejected do not begin with the prompt")
    return common, chosen[shared:], rejected[shared:]
