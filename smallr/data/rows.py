"""Raw rows -> checked rows of one of six kinds.

  preference  `chosen`, `rejected` and `prompt`: text, or chat messages. Without `prompt` the two sides share a first
              part, which becomes the prompt. Optional `beta` (a number >= 0) or `gap` (small, medium, large), and
              `ref_chosen`, `ref_rejected`: log-probs of the sides under a reference.
  unpaired    `prompt`, `completion` and `label` (true: desirable), optional `beta`; or `prompt`, `chosen` and
              `rejected`, which make two rows.
  sft         `prompt` and `completion` (text or messages), or `messages`: every assistant turn is scored.
  completions `prompt` and `completions`: a list of texts, or of chats. Rows may have different numbers of them.
  rationale   `question`, `rationale`, `answer` (text).
  choice      `question` (text) and `label` (1 or true: the second of two choices is right, 0 or false: the first).

Numbers of completions and of tokens are read as `completion_columns` says. A mistake in the set-up (a column missing or
of a wrong type, an unknown gap, a beta that is negative or NaN) raises `DataError`. A single row that cannot be trained
on (empty, equal sides, ...) is counted in the `DropReport`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from smallr.data.drops import DropReport
from smallr.data.errors import DataError, nearest, shorten

if TYPE_CHECKING:
    from smallr.data.completion_columns import CompletionColumns, CompletionNumbers

GAPS = ("small", "medium", "large")
KINDS = ("preference", "unpaired", "sft", "completions", "rationale", "choice")
# Columns that a kind reads; the sets are alternatives, all of one of them must be there.
REQUIRED = {
    "preference": (("chosen", "rejected"),),
    "unpaired": (("prompt", "completion", "label"), ("prompt", "chosen", "rejected")),
    "sft": (("messages",), ("prompt", "completion")),
    "completions": (("prompt", "completions"),),
    "rationale": (("question", "rationale", "answer"),),
    "choice": (("question", "label"),),
}
OPTIONAL = {
    "preference": ("prompt", "beta", "gap", "ref_chosen", "ref_rejected"),
    "unpaired": ("beta",),
    "sft": (),
    "completions": (),
    "rationale": (),
    "choice": (),
}
COLUMNS = tuple(dict.fromkeys(name for kind in KINDS for names in (*REQUIRED[kind], OPTIONAL[kind]) for name in names))

# Roles as conversations with `from`/`value` name them.
_ROLES = {"human": "user", "gpt": "assistant"}

Message = Mapping[str, Any]
Text = str | tuple[Message, ...]


@dataclasses.dataclass(frozen=True)
class TextRow:
    """A row of any number of completions: preference rows have two (chosen, rejected), SFT and unpaired rows one, choice
    rows none.

    Attributes:
      row: index in the source.
      prompt, completions: all text, or all chat messages. Assistant turns of a chat completion are scored.
      columns: numbers of the row; the same keys in all rows of a kind.
      numbers: numbers of each completion; empty if the set has none.
    """

    row: int
    prompt: Text
    completions: tuple[Text, ...]
    columns: Mapping[str, float]
    numbers: tuple[CompletionNumbers, ...] = ()


@dataclasses.dataclass(frozen=True)
class RationaleRow:
    """A question, its answer and why; `rationale` is None where the teacher gave none."""

    row: int
    question: str
    answer: str
    rationale: str | None


class _Unusable(Exception):
    """A single row that is dropped; its message is the reason."""


@dataclasses.dataclass(frozen=True)
class _Cell:
    """Where a value stands, for messages."""

    source: str
    row: int
    column: str

    def error(self, problem: str) -> DataError:
        return DataError(f"{self.source}, row {self.row}, column {self.column!r}: {problem}")


def columns_of(kind: str, present: Sequence[str], source: str) -> tuple[str, ...]:
    """The columns of `present` that rows of this kind are read from.

    Raises:
      DataError: unknown kind, or a column is missing; names what is there and the nearest.
    """
    if kind not in KINDS:
        raise DataError(f"row kind {kind!r} is none of {', '.join(KINDS)}{nearest(kind, KINDS)}")
    for required in REQUIRED[kind]:
        if set(required) <= set(present):
            return (*required, *(name for name in OPTIONAL[kind] if name in present))
    wanted = " or ".join(", ".join(names) for names in REQUIRED[kind])
    # Of several alternatives the one with most columns present is what the user is likely to mean.
    closest = max(REQUIRED[kind], key=lambda names: len(set(names) & set(present)))
    missing = [name for name in closest if name not in present]
    raise DataError(
        f"{source}: {kind} rows need the columns {wanted}; missing {', '.join(map(repr, missing))}, "
        f"present {', '.join(present)}{nearest(missing[0], present)} "
        f'Map a column with columns={{"{missing[0]}": "<name in the source>"}}.'
    )


def parse_rows(
    rows: Iterable[Mapping[str, Any]],
    kind: str,
    report: DropReport,
    start: int = 0,
    numbers: CompletionColumns | None = None,
) -> Iterator[TextRow | RationaleRow]:
    """Checks raw rows one by one; what cannot be used is counted in `report`.

    Args:
      rows: of the source, from row `start` on.
      kind: one of KINDS.
      report: counts them all.
      start: number of the first.
      numbers: which columns hold numbers of completions and tokens.

    Raises:
      DataError: a value of a wrong type, an unknown gap, a beta that is negative or not finite.
    """
    parsers = {
        "preference": _preference,
        "unpaired": _unpaired,
        "sft": _sft,
        "completions": _completions,
        "rationale": _rationale,
        "choice": _choice,
    }
    parse = parsers[kind]
    for index, row in enumerate(rows, start):
        report.total += 1
        try:
            parsed = parse(row, index, report.source)
        except _Unusable as reason:
            report.drop(index, str(reason))
            continue
        if numbers is not None and isinstance(parsed, TextRow):
            read = numbers.read(row, len(parsed.completions), f"{report.source}, row {index}")
            parsed = dataclasses.replace(parsed, numbers=read)
        if isinstance(parsed, RationaleRow) and parsed.rationale is None:
            report.note(index, "no rationale: answer loss only")
        several = parsed if isinstance(parsed, tuple) else (parsed,)
        report.total += len(several) - 1
        yield from several


def _preference(row: Mapping[str, Any], index: int, source: str) -> TextRow:
    chosen, rejected = (
        _filled(_text_or_chat(row[name], _Cell(source, index, name)), name) for name in ("chosen", "rejected")
    )
    columns = {
        "beta": _beta(row.get("beta"), _Cell(source, index, "beta")),
        "gap": float(_gap(row.get("gap"), _Cell(source, index, "gap"))),
    }
    for name in ("ref_chosen", "ref_rejected"):
        if name in row:
            columns[name] = _number(row[name], _Cell(source, index, name))
    prompt = None
    if "prompt" in row:
        prompt = _filled(_text_or_chat(row["prompt"], _Cell(source, index, "prompt")), "prompt")
    if chosen == rejected:
        raise _Unusable("chosen equal to rejected")
    if all(isinstance(text, str) for text in (prompt or "", chosen, rejected)):
        prompt, chosen, rejected = (prompt, chosen, rejected) if prompt else _split_texts(chosen, rejected)
    else:
        chat = None if prompt is None else _as_chat(prompt, "user")
        prompt, chosen, rejected = _split_chats(chat, _as_chat(chosen, "assistant"), _as_chat(rejected, "assistant"))
    for name, side in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected)):
        _filled(side, name)
    return TextRow(index, prompt, (_answered(chosen), _answered(rejected)), columns)


def _unpaired(row: Mapping[str, Any], index: int, source: str) -> tuple[TextRow, ...]:
    prompt = _filled(_text_or_chat(row["prompt"], _Cell(source, index, "prompt")), "prompt")
    if "completion" in row:
        labels = {"completion": _label(row["label"], _Cell(source, index, "label"))}
    else:
        labels = {"chosen": 1.0, "rejected": 0.0}
    beta = _beta(row.get("beta"), _Cell(source, index, "beta"))
    rows = []
    for name, label in labels.items():
        completion = _filled(_text_or_chat(row[name], _Cell(source, index, name)), name)
        start = prompt
        if not (isinstance(start, str) and isinstance(completion, str)):
            start, completion = _as_chat(start, "user"), _as_chat(completion, "assistant")
        rows.append(TextRow(index, start, (_answered(completion),), {"label": label, "beta": beta}))
    return tuple(rows)


def mismatched(rows: Sequence[TextRow]) -> Iterator[TextRow]:
    """Unpaired rows, each with a second completion: one that was written for another prompt.

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
    donor = {i: ring[place - shift] for place, i in enumerate(ring)}
    for i, row in enumerate(rows):
        prompt, own, other = row.prompt, row.completions[0], rows[donor[i]].completions[0]
        if isinstance(own, str) != isinstance(other, str):
            prompt = _as_chat(prompt, "user")
            own, other = _as_chat(own, "assistant"), _as_chat(other, "assistant")
        yield dataclasses.replace(row, prompt=prompt, completions=(own, other))


def _sft(row: Mapping[str, Any], index: int, source: str) -> TextRow:
    if "messages" in row:
        messages = _filled(_text_or_chat(row["messages"], _Cell(source, index, "messages")), "messages")
        if isinstance(messages, str):
            raise _Cell(source, index, "messages").error(
                f"expected a list of messages, found text {shorten(messages)}; text goes into prompt and completion"
            )
        first = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
        prompt, completion = messages[:first], messages[first:]
        if not completion:
            raise _Unusable("no assistant turn")
    else:
        prompt, completion = (
            _filled(_text_or_chat(row[name], _Cell(source, index, name)), name) for name in ("prompt", "completion")
        )
        if not (isinstance(prompt, str) and isinstance(completion, str)):
            prompt, completion = _as_chat(prompt, "user"), _as_chat(completion, "assistant")
    return TextRow(index, _filled(prompt, "prompt"), (_answered(completion),), {})


def _completions(row: Mapping[str, Any], index: int, source: str) -> TextRow:
    cell = _Cell(source, index, "completions")
    prompt = _filled(_text_or_chat(row["prompt"], _Cell(source, index, "prompt")), "prompt")
    if isinstance(row["completions"], str) or not isinstance(row["completions"] or (), Sequence):
        raise cell.error(f"expected a list of texts or of chats, found {shorten(row['completions'])}")
    completions = [_filled(_text_or_chat(value, cell), "completion") for value in row["completions"] or ()]
    if not completions:
        raise _Unusable("no completion")
    if not all(isinstance(text, str) for text in (prompt, *completions)):
        prompt, completions = _as_chat(prompt, "user"), [_as_chat(text, "assistant") for text in completions]
    return TextRow(index, prompt, tuple(map(_answered, completions)), {})


def _rationale(row: Mapping[str, Any], index: int, source: str) -> RationaleRow:
    values = {name: _plain(row[name], _Cell(source, index, name)) for name in ("question", "answer", "rationale")}
    for name in ("question", "answer"):
        _filled(values[name], name)
    return RationaleRow(index, values["question"], values["answer"], values["rationale"] or None)


def _choice(row: Mapping[str, Any], index: int, source: str) -> TextRow:
    question = _filled(_plain(row["question"], _Cell(source, index, "question")), "question")
    return TextRow(index, question, (), {"label": _label(row["label"], _Cell(source, index, "label"))})


def _plain(value: Any, cell: _Cell) -> str:
    """Text without white space around it; null is empty."""
    if value is not None and not isinstance(value, str):
        raise cell.error(f"expected text, found {_kind(value)} {shorten(value)}; write it out")
    return (value or "").strip()


def _text_or_chat(value: Any, cell: _Cell) -> Text:
    """Text, or messages with `role` and `content`; null is empty text."""
    if value is None or isinstance(value, str):
        return value or ""
    messages = value
    if isinstance(value, Mapping):  # one message, or the columns of a list of them, as TFDS and old Arrow files have it
        is_table = value and all(isinstance(items, Sequence) and not isinstance(items, str) for items in value.values())
        messages = (
            [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]
            if is_table
            else [value]
        )
    if not isinstance(messages, Sequence) or not all(isinstance(message, Mapping) for message in messages):
        raise cell.error(
            f"expected text or a list of messages {{role, content}}, found {_kind(value)} {shorten(value)}"
        )
    return tuple(_message(message, cell) for message in messages)


def _message(message: Message, cell: _Cell) -> Message:
    """Null fields are what Arrow puts where another message of the column has a field: they are left out."""
    message = {key: value for key, value in message.items() if value is not None}
    if "from" in message and "value" in message:
        message = {"role": _ROLES.get(message["from"], message["from"]), "content": message["value"]}
    if not isinstance(message.get("role"), str):
        raise cell.error(f"a message needs `role` and `content`, found {shorten(message)}")
    message.setdefault("content", "")
    if not isinstance(message["content"], str):
        raise cell.error(f"`content` of a message must be text, found {_kind(message['content'])} {shorten(message)}")
    return message


def _as_chat(text: Text, role: str) -> tuple[Message, ...]:
    return ({"role": role, "content": text},) if isinstance(text, str) else text


def _filled(text: Text, name: str) -> Text:
    contents = [text] if isinstance(text, str) else [message["content"] for message in text]
    if not any(content.strip() for content in contents):
        raise _Unusable(f"empty {name}")
    return text


def _answered(completion: Text) -> Text:
    """A chat completion has assistant turns, none of them empty."""
    if isinstance(completion, str):
        return completion
    turns = [message["content"] for message in completion if message["role"] == "assistant"]
    if not turns:
        raise _Unusable("no assistant turn")
    if not all(turn.strip() for turn in turns):
        raise _Unusable("empty assistant turn")
    return completion


def common_length(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Length of the common beginning of two sequences."""
    limit = min(len(a), len(b))
    return limit if a[:limit] == b[:limit] else next(i for i in range(limit) if a[i] != b[i])


def _split_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Prompt and completions of two texts that begin alike.

    The cut lies before the last white space of the common part: a word that both sides happen to begin with belongs to
    the completions, and most tokenizers glue a space to the word that follows it.
    """
    shared = common_length(chosen, rejected)
    while shared and not chosen[shared - 1].isspace():
        shared -= 1
    shared = len(chosen[:shared].rstrip())
    if not shared:
        raise _Unusable("chosen and rejected share no first part to be the prompt")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _split_chats(
    prompt: tuple[Message, ...] | None, chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], ...]:
    """Prompt and completions of two chats, which may repeat the prompt (`prompt` given) or imply it (None)."""
    if prompt is not None and all(side[0]["role"] not in ("system", "user") for side in (chosen, rejected)):
        return prompt, chosen, rejected
    limit = min(len(chosen), len(rejected)) - 1  # a message is left for each side
    shared = common_length(chosen[:limit], rejected[:limit])
    common = chosen[:shared]
    if not common:
        raise _Unusable("chosen and rejected share no first part to be the prompt")
    if prompt is not None and not any(common[i : i + len(prompt)] == prompt for i in range(shared)):
        raise _Unusable("chosen and rejected do not begin with the prompt")
    return common, chosen[shared:], rejected[shared:]


def _beta(value: Any, cell: _Cell) -> float:
    """The number, NaN where the row has none."""
    beta = _number(value, cell)
    if value not in (None, "") and not (math.isfinite(beta) and beta >= 0):
        raise cell.error(f"beta must be a finite number >= 0, found {value}; correct or remove the row")
    return beta


def _number(value: Any, cell: _Cell) -> float:
    """The number, NaN where the row has none. Text of a number is what CSV files hold."""
    if value is None or value == "":
        return math.nan
    try:
        number = float(value) if not isinstance(value, bool) else None
    except (TypeError, ValueError):
        number = None
    if number is None:
        raise cell.error(f"expected a number, found {_kind(value)} {shorten(value)}")
    return number


_LABELS = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}


def _label(value: Any, cell: _Cell) -> float:
    """1 for a desirable completion, 0 for an undesirable one."""
    label = _LABELS.get(str(value).lower())
    if label is None:
        raise cell.error(f"expected true or false, found {_kind(value)} {shorten(value)}")
    return label


def _gap(value: Any, cell: _Cell) -> int:
    """Index into GAPS, -1 where the row has none."""
    if value is None or value == "":
        return -1
    if value not in GAPS:
        raise cell.error(f"gap {shorten(value)} is none of {', '.join(GAPS)}{nearest(value, GAPS)}")
    return GAPS.index(value)


def _kind(value: Any) -> str:
    return "a number" if isinstance(value, int | float) else f"a {type(value).__name__}"
