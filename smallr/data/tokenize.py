"""Tokenises the rows of a data set into a `TokenSet`, once; the result is kept on disk.

`max_length` is a limit on the whole example: its prefix and all its completions, because that is what has to fit in a row
of a batch. A longer example is dropped and counted, or its prompt is shortened (see `truncation`); completions are never cut.

Large sets are tokenised by several processes, a part of the rows each (see `parts`), with the same result. Unpaired rows
are not: the second completion of a row depends on all rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
from tqdm import tqdm

from smallr.core.cache import cache_dir, cached_folder, is_intact
from smallr.data.batch import Completion, Example
from smallr.data.chat import Renderer, choice_pieces, rationale_pieces
from smallr.data.completion_columns import CompletionColumns
from smallr.data.drops import DropReport
from smallr.data.encode import (
    Encoder,
    choice_example,
    choice_ids,
    longest_text,
    to_example,
    with_soft_tokens,
    without_first,
)
from smallr.data.errors import DataError, nearest
from smallr.data.formats import KINDS, Reading, read_as
from smallr.data.orders import BOTH, FORMATS, ORDERS, PROMPT
from smallr.data.parts import num_workers, tokenize_parts, turn
from smallr.data.rows import RationaleRow, TextRow, mismatched, parse_rows
from smallr.data.segment_points import with_points
from smallr.data.templates import DATE, Marked, Unrenderable
from smallr.data.token_set import TokenSet, write
from smallr.data.truncation import DROP, POLICIES, PromptCutter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Part of the cache key: raise it when a change of the code changes the tokens of any row, or the files of a set.
VERSION = 5
_BATCH = 256


@dataclasses.dataclass(frozen=True)
class TokenizeOptions:
    """Says how rows become tokens.

    Attributes:
      kind: preference, unpaired, sft, completions, rationale or choice. An unpaired example has two completions: its
        completion, and one of another prompt for the KL estimate of KTO, of which no gradient is taken. A choice example
        has two completions of a token each: the choices, in their order.
      max_length: most tokens of an example, its prefix and all completions together.
      chat: wrap plain strings in the chat template; rows of messages always use it.
      share_prompt: whether a row of a batch will hold the prefix once or once per completion, for `max_length`.
      order: of rationale rows: answer_first, rationale_first or both. In both, a row makes an example of each order,
        with a column `order` (index in `ORDERS`); one without a rationale answers first alone.
      formats: of the orders; those that are not given are `chat.FORMATS`.
      soft_tokens: how many soft tokens stand in front of each example's prompt. In both orders each has its own: those
        of soft prompt 0 for answer_first, 1 for rationale_first; else those of soft prompt 0.
      prompt: of choice rows, see `chat.choice_pieces`.
      choices: of choice rows: two texts that begin with different tokens, of which the first counts.
      format: how the columns are read, one of `formats.format_names(kind)`; empty: found out from the columns.
      date: that a chat template writes where it writes today's, so that tokens are the same on every day.
      truncation: what happens to a longer example, one of `truncation.POLICIES`.
      end: put the end token behind plain completions; without it they say their end themselves, or have none.
      completion_columns, token_columns, segment_columns: numbers that rows have of their completions, of their scored tokens
        and of the segments of completions, see `smallr.data.completion_columns`.

    Raises:
      DataError: a value that is not one of the choices.
    """

    kind: str
    max_length: int
    chat: bool = False
    share_prompt: bool = True
    order: str = "answer_first"
    formats: Mapping[str, str] = dataclasses.field(default_factory=dict)
    soft_tokens: int = 0
    prompt: str = PROMPT
    choices: Sequence[str] = ()
    format: str = ""
    date: str = DATE
    truncation: str = DROP
    end: bool = True
    completion_columns: Sequence[str] = ()
    token_columns: Sequence[str] = ()
    segment_columns: Sequence[str] = ()

    def __post_init__(self) -> None:
        for field, choices in (("kind", KINDS), ("order", (*ORDERS, BOTH)), ("truncation", POLICIES)):
            value = getattr(self, field)
            if value not in choices:
                raise DataError(
                    f"config.data.{field}={value}: must be one of: {', '.join(choices)}{nearest(value, choices)}"
                )
        if self.max_length < 2:
            raise DataError(f"max_length {self.max_length} leaves no room for a prompt and a completion")
        if self.soft_tokens < 0:
            raise DataError(f"soft_tokens {self.soft_tokens} must not be negative")
        if self.kind == "choice" and len(self.choices) != 2:
            raise DataError(f"choices {list(self.choices)!r}: expected two texts")
        choice_pieces(self.prompt)
        _ = self.numbers
        self._check_formats()

    def _check_formats(self) -> None:
        if unknown := sorted(set(self.formats) - set(ORDERS)):
            raise DataError(f"formats: {unknown[0]!r} must be one of: {', '.join(ORDERS)}{nearest(unknown[0], ORDERS)}")
        pieces = {order: rationale_pieces(template) for order, template in self.all_formats.items()}
        for order, (*_, names) in pieces.items():
            if names[0] != order.removesuffix("_first"):
                raise DataError(f"format {self.all_formats[order]!r} begins with the {names[0]}, but order is {order}")
        told = {(head, "" if self.chat else mid.rstrip()) for head, mid, *_ in pieces.values()}
        if self.kind == "rationale" and self.order == BOTH and not self.soft_tokens and len(told) == 1:
            where = "before {question}" if self.chat else "before or behind {question}"
            raise DataError(
                f"order {BOTH}: the prompts of the two formats are the same, so that nothing would tell the model which "
                f"order is meant: put a word into each format {where}, or train soft prompts"
            )

    @property
    def numbers(self) -> CompletionColumns:
        """Returns which columns hold numbers of completions and tokens."""
        columns = self.completion_columns, self.token_columns, self.segment_columns
        return CompletionColumns(self.kind, *map(tuple, columns))

    @property
    def all_formats(self) -> dict[str, str]:
        """Returns the texts of a rationale row by order."""
        return {**FORMATS, **self.formats}

    @property
    def orders(self) -> tuple[str, ...]:
        """Returns the orders in which a rationale row is written."""
        return ORDERS if self.order == BOTH else (self.order,)

    @property
    def soft_prompts(self) -> int:
        """Returns how many soft prompts the examples read."""
        if not self.soft_tokens:
            return 0
        return len(self.orders) if self.kind == "rationale" else 1


def tokenize(
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerFast,
    options: TokenizeOptions,
    *,
    source: str = "rows",
    cache: Path | None = None,
    numbers: Sequence[int] = (),
) -> TokenSet:
    """Tokenises a data set, or finds the result of having done so.

    Args:
      rows: columns of the kind, under our names.
      tokenizer: a fast tokenizer.
      options: what is made of them.
      source: name of the rows in messages and reports.
      cache: folder of results, by default `cache_dir("tokens")`.
      numbers: of the rows in their file or split, for messages and reports; by default they count from 0.

    Returns:
      The examples in the order of the rows, with the report of what was dropped.

    Raises:
      DataError: missing columns, wrong types, a tokenizer without what the rows need, no row left.
    """
    names = rows.column_names
    read, reading = _read(rows, options, source)
    unread = tuple(name for name in names if name not in read.column_names)
    about = functools.partial(
        DropReport, source, options.max_length, read_as=reading.describe(), unread=unread, numbers=numbers
    )
    rows, encoder = read, Encoder(tokenizer)
    folder = _folder(rows, encoder, tokenizer, options, reading, cache)
    # The result is checked whole before it is believed.
    if is_intact(folder, quiet=True):
        return _opened(folder, about())
    maker = ExampleMaker(encoder, tokenizer, options, reading)
    workers = 1 if options.kind == "unpaired" else num_workers(rows)

    def build(target: Path) -> None:
        if workers == 1:
            report = maker.write(target, rows, about(), progress=progress)
        else:
            job = {"options": dataclasses.asdict(options), "reading": dataclasses.asdict(reading)}
            report = tokenize_parts(target, rows, tokenizer, job, maker.write, about, workers, progress)
        if not report.kept:
            raise DataError(f"no row is left to train on\n{report}")

    with (
        tqdm(total=len(rows), desc=f"tokenising {source}", unit="row", delay=1, disable=None) as progress,
        turn() if workers > 1 else contextlib.nullcontext(),
    ):
        # Another process of this run may have made it while this one waited for its turn.
        return _opened(cached_folder(folder, build), about())


def token_folder(
    rows: datasets.Dataset, tokenizer: PreTrainedTokenizerFast, options: TokenizeOptions, *, source: str = "rows"
) -> Path:
    """Returns where `tokenize` keeps its result; the name is a hash of all that the tokens depend on.

    Raises:
      DataError: rows or a tokenizer that cannot be used.
    """
    read, reading = _read(rows, options, source)
    return _folder(read, Encoder(tokenizer), tokenizer, options, reading, None)


def block_digests(rows: datasets.Dataset, blocks: int = 64) -> list[str]:
    """Returns a hash for each of up to so many blocks of rows, of one size but for the last."""
    size = -(-len(rows) // min(blocks, max(len(rows), 1)))
    found = (json.dumps(block, ensure_ascii=False, default=repr) for block in rows.iter(size)) if len(rows) else ()
    return [hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16] for text in found]


def _read(rows: datasets.Dataset, options: TokenizeOptions, source: str) -> tuple[datasets.Dataset, Reading]:
    """Returns the columns that are read, and how."""
    names = rows.column_names
    reading = read_as(options.kind, names, rows, source, options.format)
    options.numbers.check(names, source)
    return rows.select_columns(list(dict.fromkeys((*reading.columns, *options.numbers.sources)))), reading


def _folder(
    rows: datasets.Dataset,
    encoder: Encoder,
    tokenizer: PreTrainedTokenizerFast,
    options: TokenizeOptions,
    reading: Reading,
    cache: Path | None,
) -> Path:
    return (cache or cache_dir("tokens")) / _key(rows, encoder, tokenizer, options, reading)[:32]


class ExampleMaker:
    """Turns rows into examples on disk.

    Args:
      encoder: of `tokenizer`.
      tokenizer: with the chat template.
      options: what is made of rows.
      reading: of the rows.
    """

    def __init__(
        self, encoder: Encoder, tokenizer: PreTrainedTokenizerFast, options: TokenizeOptions, reading: Reading
    ) -> None:
        self._encoder = encoder
        self._reading = reading
        self._longest = longest_text(tokenizer, options.max_length)
        formats = {order: options.all_formats[order] for order in options.orders}
        self._renderer = Renderer(
            tokenizer,
            chat=options.chat,
            formats=formats,
            prompt=options.prompt,
            date=options.date,
            end=options.end,
        )
        self._choices = choice_ids(encoder, options.choices) if options.kind == "choice" else None
        self._options = options
        self._cutter = PromptCutter(encoder, self._longest, self._excess)
        self._place: Callable[[int], str] = str

    def write(
        self, folder: Path, rows: datasets.Dataset, report: DropReport, start: int = 0, progress: tqdm | None = None
    ) -> DropReport:
        """Writes the `TokenSet` of rows; nothing if none is left.

        Args:
          folder: where it goes.
          rows: of the report's source, from row `start` on.
          report: counts what is kept and dropped.
          start: number of the first.
          progress: counts them.

        Returns:
          The report.
        """
        options, self._place = self._options, report.place
        parsed = parse_rows(
            _iterate(rows, progress),
            options.kind,
            report,
            start,
            options.numbers,
            reading=self._reading,
            chat=options.chat,
        )
        if options.kind == "unpaired":
            parsed = mismatched(list(parsed))
        write(folder, self._examples(parsed, report), report)
        return report

    def _examples(self, rows: Iterable[TextRow | RationaleRow], report: DropReport) -> Iterator[Example]:
        made = self._made_choices(rows, report) if self._choices else self._made(rows, report)
        for row, number, example, is_long in made:
            reason = "" if is_long else self._problem(example, report)
            if (is_long or reason == report.too_long) and (example := self._cut(row, number)) is not None:
                report.cut += 1
                report.note(row.row, f"prompt shortened from the left to fit {self._options.max_length} tokens")
            elif is_long or reason:
                report.drop(row.row, reason or report.too_long)
                continue
            report.kept += 1
            yield example

    def _problem(self, example: Example | None, report: DropReport) -> str:
        """Returns why an example cannot be used; empty if it can."""
        if example is None:
            return "no token of the prompt stands before the completion"
        completions = [completion.tokens for completion in example.completions]
        if self._options.kind == "preference" and completions[0].tolist() == completions[1].tolist():
            return "chosen equal to rejected"
        return "" if report.measure(example.row, self._length(example)) else report.too_long

    def _length(self, example: Example) -> int:
        return self._prefixes(example) * len(example.prefix) + sum(len(each.tokens) for each in example.completions)

    def _prefixes(self, example: Example) -> int:
        return 1 if self._options.share_prompt else len(example.completions)

    def _excess(self, example: Example) -> int:
        """Returns the tokens that a prompt must lose so that its example fits."""
        return -(-(self._length(example) - self._options.max_length) // self._prefixes(example))

    def _cut(self, row: TextRow | RationaleRow, number: int) -> Example | None:
        """Returns the example of a row that is too long with a shorter prompt; None if it is to be dropped."""
        if self._options.truncation == DROP:
            return None
        try:
            return self._cutter.cut(row, lambda shorter: self._one(shorter, number))
        except Unrenderable:
            return None

    def _one(self, row: TextRow | RationaleRow, number: int) -> Example | None:
        """Makes one example by itself."""
        if self._choices:
            (prefix,) = self._encoder.prompts([self._renderer.choice_prompt(row.prompt)], is_chat=self._options.chat)
            return self._with_soft(choice_example(prefix, self._choices, row.columns, row.row), number)
        is_rationale = isinstance(row, RationaleRow)
        order = self._options.orders[number] if is_rationale else ""
        texts = _texts(self._renderer, row, order, self._place(row.row))
        return self._assembled(row, number, _columns(row, number, self._options.orders), self._encoder(texts))

    def _assembled(
        self, row: TextRow | RationaleRow, number: int, columns: Mapping[str, float], encoded: Sequence[Completion]
    ) -> Example | None:
        """Makes an example of the encoded texts of a row."""
        if isinstance(row, TextRow) and row.prompt == "":
            encoded = [without_first(whole) for whole in encoded]
        example = to_example(encoded, columns, row.row)
        if example is not None and isinstance(row, TextRow):
            example = self._options.numbers.attach(example, row.numbers, self._place(row.row))
        return self._with_soft(example, number)

    def _with_soft(self, example: Example | None, number: int) -> Example | None:
        return None if example is None else with_soft_tokens(example, number, self._options.soft_tokens)

    def _made(
        self, rows: Iterable[TextRow | RationaleRow], report: DropReport
    ) -> Iterator[tuple[TextRow | RationaleRow, int, Example | None, bool]]:
        """Yields (row, number of its soft prompt, example, whether it is too long to be tokenised)."""
        rendered = _rendered(rows, self._renderer, self._options.orders, report)
        for batch in _batched(map(self._without_long_texts, rendered), _BATCH):
            wholes = iter(self._encoder([text for *_, texts in batch for text in texts]))
            for row, number, columns, texts in batch:
                encoded = [next(wholes) for _ in texts]
                example = self._assembled(row, number, columns, encoded) if encoded else None
                yield row, number, example, not encoded

    def _without_long_texts(self, rendered: tuple[Any, int, Mapping[str, float], Sequence[Marked]]) -> tuple:
        """Leaves out texts of more characters than `max_length` tokens can have: they need not be tokenised."""
        *row, texts = rendered
        return *row, () if max(len(marked.text) for marked in texts) > self._longest else texts

    def _made_choices(
        self, rows: Iterable[TextRow], report: DropReport
    ) -> Iterator[tuple[TextRow, int, Example | None, bool]]:
        def prompts() -> Iterator[tuple[TextRow, str]]:
            for row in rows:
                try:
                    yield row, self._renderer.choice_prompt(row.prompt)
                except Unrenderable as reason:
                    report.drop(row.row, str(reason))

        for batch in _batched(prompts(), _BATCH):
            is_long = [len(prompt) > self._longest for _, prompt in batch]
            short = [prompt for (_, prompt), long in zip(batch, is_long, strict=True) if not long]
            ids = iter(self._encoder.prompts(short, is_chat=self._options.chat))
            for (row, _), long in zip(batch, is_long, strict=True):
                example = None if long else choice_example(next(ids), self._choices, row.columns, row.row)
                yield row, 0, self._with_soft(example, 0), long


def _rendered(
    rows: Iterable[TextRow | RationaleRow], renderer: Renderer, orders: Sequence[str], report: DropReport
) -> Iterator[tuple[TextRow | RationaleRow, int, Mapping[str, float], Sequence[Marked]]]:
    """Yields (row, number of its soft prompt, columns, texts)."""
    for row in rows:
        if isinstance(row, RationaleRow):
            # Without a rationale there is nothing to think about first.
            wanted = orders if row.rationale is not None else orders[:1]
            report.total += len(wanted) - 1
        else:
            wanted = ("",)
        for number, order in enumerate(wanted):
            columns = _columns(row, number, orders)
            try:
                texts = _texts(renderer, row, order, report.place(row.row))
            except Unrenderable as reason:
                report.drop(row.row, str(reason))
            else:
                for note in dict.fromkeys(note for marked in texts for note in marked.notes):
                    report.note(row.row, note)
                yield row, number, columns, texts


def _texts(renderer: Renderer, row: TextRow | RationaleRow, order: str, place: str) -> Sequence[Marked]:
    """Renders a row, in an order if it is a rationale row."""
    if isinstance(row, RationaleRow):
        return renderer.rationale_row(row, order)
    return with_points(renderer.text_row(row), row, place)


def _columns(row: TextRow | RationaleRow, number: int, orders: Sequence[str]) -> Mapping[str, float]:
    """Returns the numbers of a row's example; `number` is that of its order."""
    if isinstance(row, RationaleRow):
        return {"order": float(number)} if len(orders) > 1 else {}
    return row.columns


def _iterate(rows: datasets.Dataset, progress: tqdm | None) -> Iterator[Mapping[str, Any]]:
    """Yields rows one by one, read in batches: single rows of Arrow are slow."""
    for batch in rows.iter(_BATCH):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))
            if progress is not None:
                progress.update()


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _key(
    rows: datasets.Dataset,
    encoder: Encoder,
    tokenizer: PreTrainedTokenizerFast,
    options: TokenizeOptions,
    reading: Reading,
) -> str:
    """Returns the hash of everything that the tokens depend on."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        digest.update(json.dumps(value, sort_keys=True, ensure_ascii=False, default=repr).encode("utf-8", "replace"))

    add([VERSION, dataclasses.asdict(options), encoder.definition, encoder.eos, rows.column_names])
    add([tokenizer.chat_template, {name: str(token) for name, token in tokenizer.special_tokens_map.items()}])
    add(dataclasses.asdict(reading))
    for batch in rows.iter(_BATCH):
        add(batch)
    return digest.hexdigest()


def _opened(folder: Path, about: DropReport) -> TokenSet:
    """Opens a result; the rows may have been cached under another name, and beside other columns, than these."""
    tokens = TokenSet(folder)
    tokens.report.source, tokens.report.unread, tokens.report.numbers = about.source, about.unread, about.numbers
    return tokens
