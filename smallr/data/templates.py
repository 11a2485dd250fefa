"""Renders chats by a tokenizer's own template, whole, and finds which characters the assistant wrote.

A chat is rendered once with its own contents, and, where that leaves doubt, once more with a mark in the place of each
of the assistant's contents: what stands around the marks is the template's. So nothing is assumed of how a template
writes a turn; one that leaves the thinking out of earlier turns, or adds an empty thought to the last, is followed as it
is. A turn begins where the prompt that generation would see ends, and ends with its end-of-turn token.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from smallr.data.batch import ROLE_ANSWER
from smallr.data.errors import DataError
from smallr.data.messages import Message, is_scored
from smallr.data.rows import common_length

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# The date that a template writes where it writes today's: a run is the same on every day. It is the one that Llama's
# template falls back to.
DATE = "2024-07-26"
LAST = -1  # the last scored token, in place of a character
_THOUGHT = re.compile(r"(?s)(.*)</think>\s*")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_READ = ("role", "content", "weight", "tool_calls", "tool_call_id")
# Marks of the chat templates of common families, for texts that another tokenizer's template has rendered.
_MARKS = re.compile(
    r"<\|(?:im_start|im_end|start_header_id|end_header_id|eot_id|user|assistant|system|end|endoftext|end_of_text)\|>"
    r"|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|<[｜|](?:User|Assistant)[｜|]>"
)
_CALL_ENDS = ("<|eom_id|>", "<|call|>")
_ADVICE = "choose a tokenizer with another template (config.tokenizer), or write texts out and set data.chat=False"


class Unrenderable(Exception):
    """Says that the template cannot show a single row faithfully; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class Span:
    """Marks characters [start, end) of a text as scored under `role`."""

    start: int
    end: int
    role: int


@dataclasses.dataclass(frozen=True)
class Marked:
    """Represents a text to tokenise.

    Attributes:
      text: prompt and completion.
      spans: scored characters, ascending, at least one.
      is_chat: rendered by a template, which writes every special token itself. Plain text gets the special tokens that
        the tokenizer adds.
      ends: plain text gets EOS too (scored, with the role of the last span).
      points: numbers of tokens: name of a token column -> (character, number), of the token that has this character, or of
        the last scored one (`LAST`). Numbers of one token are added.
      notes: what is not as it might be expected, though the row is kept.
    """

    text: str
    spans: tuple[Span, ...]
    is_chat: bool
    notes: tuple[str, ...] = ()
    ends: bool = True
    points: Mapping[str, tuple[tuple[int, float], ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Turn:
    """Represents a turn of the assistant in a rendered chat.

    Attributes:
      index: of its message.
      head: what its content begins with, thoughts, and `tail`, the rest.
      start, end: characters of what is written of the tail; of the name of its first call where it has no content.
    """

    index: int
    head: str
    tail: str
    start: int = 0
    end: int = 0


class ChatTemplate:
    """Renders chats by the template of one tokenizer.

    Args:
      tokenizer: has the template.
      date: year-month-day, written where the template writes today's.

    Raises:
      DataError: `date` is none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, date: str = DATE) -> None:
        self._tokenizer, self._date = tokenizer, parse_date(date)
        specials = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        specials |= {tokenizer.eos_token} if tokenizer.eos_token else set()
        self._special = _any_of(specials)

    def require(self, why: str) -> None:
        """Raises DataError if there is no template."""
        if not self._tokenizer.chat_template:
            raise DataError(
                f"{why}: the tokenizer of {self._tokenizer.name_or_path or 'this model'} has no chat template. Take the "
                "instruct model's tokenizer, set tokenizer.chat_template, or use rows of plain text with chat=False."
            )

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), **options: Any) -> str:
        """Renders a chat as it stands.

        Raises:
          Unrenderable: the template refuses it.
          DataError: there is no template.
        """
        self.require("chat messages")
        if any("tool_calls" in message for message in messages):
            messages = [_written(message, *self._calls_form) for message in messages]
        try:
            return self._apply(messages, tools, **options)
        except ImportError:
            raise  # a missing package is no fault of the row
        except Exception as error:  # a template raises what it likes, e.g. on roles out of turn
            raise Unrenderable(f"the chat template refuses the conversation: {error}") from error

    def opening(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """Renders a chat up to where an answer begins."""
        return self.render(messages, tools, add_generation_prompt=True)

    def turns(
        self,
        prompt: Sequence[Message],
        completion: Sequence[Message],
        opening: str,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Marked:
        """Renders the whole chat, each scored turn of the completion a span that ends with its end-of-turn token.

        Args:
          prompt: where it ends in an answer, the completion goes on with that.
          completion: with a turn of the assistant.
          opening: of the prompt, for its first turn.
          tools: definitions.

        Raises:
          Unrenderable: the template does not write the completion, or not behind the prompt that generation sees.
        """
        begun = ""
        first = len(prompt)
        if prompt and prompt[-1]["role"] == completion[0]["role"] == "assistant":
            begun, first = prompt[-1]["content"], len(prompt) - 1
            joined = {**prompt[-1], **completion[0], "content": begun + completion[0]["content"]}
            prompt, completion = prompt[:-1], [joined, *completion[1:]]
        messages = [*prompt, *completion]
        text = self.render(messages, tools)
        is_plain = not (begun or tools) and all(message.keys() == {"role", "content"} for message in messages)
        if is_plain and len(completion) == 1 and (simple := self._one_answer(text, opening, messages)):
            return simple
        notes: dict[str, None] = dict.fromkeys(self._unread(messages, tools))
        asked = [i for i in range(first, len(messages)) if messages[i]["role"] == "assistant"]
        spans, before = [], 0
        for turn in self._located(messages, asked, text, tools):
            message = messages[turn.index]
            end = self._end(text, turn, message)
            if turn.index == first and begun:
                start = _behind(begun, turn, text, before)
            elif turn.index > first and self._header and text.endswith(self._header, before, turn.start):
                start = turn.start  # as every turn begins
            else:
                own = opening if turn.index == first else self.opening(messages[: turn.index], tools)
                start = self._start(messages, turn, text, own, before, tools)
                if start is None:
                    return self._continued(text, spans, message, own, notes)
            self._check(message, turn, text[start:end], turn.index == asked[-1], notes)
            if is_scored(message):
                spans.append(Span(start, end, ROLE_ANSWER))
            before = end
        return Marked(text, tuple(spans), True, tuple(notes))

    def written_before(self, *texts: str) -> str | None:
        """Returns a special token of the template that stands in plain texts: they have been rendered already."""
        if not self._own_specials:
            return None
        return next((match[0] for text in texts if (match := self._own_pattern.search(text))), None)

    # --- how the template writes ---

    def _apply(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], **options: Any) -> str:
        plain = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
        template = self._dated if not tools else self._dated_for_tools
        return self._tokenizer.apply_chat_template(
            plain, tools=list(tools) or None, chat_template=template, tokenize=False, **options
        )

    @functools.cached_property
    def _dated(self) -> str:
        return with_date(self._tokenizer.get_chat_template(), self._date)

    @functools.cached_property
    def _dated_for_tools(self) -> str:
        return with_date(self._tokenizer.get_chat_template(tools=[{}]), self._date)

    @functools.cached_property
    def _probe(self) -> tuple[str, str]:
        """Returns what the template writes of a short chat, and behind the answer."""
        answer = "thirty-one"
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
        try:
            text = self._apply(messages, ())
        except Exception:  # a template for other roles
            return "", ""
        return text, text.rpartition(answer)[2]

    @functools.cached_property
    def _header(self) -> str:
        """Returns what opens an answer behind a short question; empty where that cannot be told."""
        asked = [{"role": "user", "content": "?"}]
        try:
            closed, opening = self._apply(asked, ()), self._apply(asked, (), add_generation_prompt=True)
        except Exception:
            return ""
        return opening.removeprefix(closed) if opening.startswith(closed) else ""

    @functools.cached_property
    def _end_token(self) -> str:
        found = self._special.search(self._probe[1])
        return found[0] if found else ""

    @functools.cached_property
    def _own_specials(self) -> set[str]:
        # Without the beginning of the text, which plain text may well have: it is put there once.
        return set(self._special.findall(self._probe[0])) - {self._tokenizer.bos_token}

    @functools.cached_property
    def _own_pattern(self) -> re.Pattern[str]:
        return _any_of(self._own_specials)

    @functools.cached_property
    def _call_end(self) -> re.Pattern[str]:
        return _any_of({*_CALL_ENDS, *filter(None, (self._end_token, self._tokenizer.eos_token))})

    @functools.cached_property
    def _calls_form(self) -> tuple[bool, bool]:
        """Finds how the template takes calls: whether no content is null, and whether arguments are JSON text."""
        call = {"type": "function", "id": "call00000", "function": {"name": "sum_up", "arguments": {"a": 2}}}
        chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
        for form in ((True, False), (False, False), (True, True), (False, True)):
            try:
                text = self._apply([_written(message, *form) for message in chat], ())
            except Exception:
                continue
            if "sum_up" in text and "None" not in text:
                return form
        return False, False

    @functools.cached_property
    def _shows_tools(self) -> bool:
        tool = {"type": "function", "function": {"name": "sum_up", "description": "adds", "parameters": {}}}
        try:
            return "sum_up" in self._apply([{"role": "user", "content": "?"}], [tool])
        except Exception:
            return True  # it reads more of a tool than this

    def _unread(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[str]:
        """Returns keys of messages that the template does not name, and tools that it does not show."""
        template = self._dated
        keys = {key for message in messages for key in message} - set(_READ)
        unread = {key for key in keys if not re.search(rf"\b{re.escape(key)}\b", template)}
        if any(key in template for key in _REASONING):
            unread -= set(_REASONING)
        notes = [f"the chat template does not read {key!r} of messages" for key in sorted(unread)]
        if tools and not self._shows_tools:
            notes.append("the chat template does not show `tools`")
        if any(self.written_before(message["content"]) for message in messages):
            notes.append("a message holds special tokens of the chat template")
        elif marks := [found[0] for message in messages if (found := _MARKS.search(message["content"] or ""))]:
            notes.append(
                f"the text holds {marks[0]!r}, a mark of some chat template: if it has been rendered before, take the bare "
                "texts, or set data.chat=False and let config.tokenizer be the one that it was rendered for"
            )
        return notes

    # --- where turns are ---

    def _one_answer(self, text: str, opening: str, messages: Sequence[Message]) -> Marked | None:
        """Handles the commonest case in one look: one answer at the end, written as it is, behind the prompt."""
        content = messages[-1]["content"]
        if "</think>" in content or not (text.startswith(opening) and text.startswith(content, len(opening))):
            return None
        close = self._special.match(text, len(opening) + len(content))
        contents = [message["content"] for message in messages]
        if close is None or self.written_before(*contents) or any(map(_MARKS.search, contents)):
            return None
        return Marked(text, (Span(len(opening), close.end(), ROLE_ANSWER),), True)

    def _located(
        self, messages: Sequence[Message], asked: Sequence[int], text: str, tools: Sequence[Mapping[str, Any]]
    ) -> list[_Turn]:
        """Returns where the contents of the turns stand, by what the template writes around marks in their place."""
        mark = next(character for character in map(chr, range(0xE000, 0xF8FF)) if character not in text)
        marked, turns = list(messages), []
        for number, index in enumerate(asked):
            marked[index], turn = _with_mark(messages[index], index, f"{mark}{number}{mark}")
            turns.append(turn)
        gaps = re.split(rf"{mark}(\d+){mark}", self.render(marked, tools))
        if gaps[1::2] != [str(number) for number in range(len(turns))]:
            raise Unrenderable(f"the chat template rewrites the completion; {_ADVICE}")
        at, found = 0, []
        for turn, before, behind in zip(turns, gaps[0::2], gaps[2::2], strict=False):
            at += len(before)
            written = dict.fromkeys((turn.tail, turn.tail.lstrip("\n"), *_stripped(turn.tail)))
            piece = next((piece for piece in written if text.startswith(piece + behind, at)), None)
            if piece is None or text[at - len(before) : at] != before:
                raise Unrenderable(f"the chat template rewrites the completion; {_ADVICE}")
            found.append(dataclasses.replace(turn, start=at, end=at + len(piece)))
            at += len(piece)
        if at + len(gaps[-1]) != len(text):
            raise Unrenderable(f"the chat template rewrites the completion; {_ADVICE}")
        return found

    def _start(
        self,
        messages: Sequence[Message],
        turn: _Turn,
        text: str,
        opening: str,
        before: int,
        tools: Sequence[Mapping[str, Any]],
    ) -> int | None:
        """Returns where a turn begins; None where generation opens the last answer with what the template leaves out of it."""
        shared = common_length(opening, text[: turn.start])
        if shared == len(opening):
            return shared
        closed = self.render(messages[: turn.index], tools)
        if not opening.startswith(closed) or opening == closed:
            raise Unrenderable(f"the chat template writes the prompt differently once an answer follows; {_ADVICE}")
        is_last = not any(message["role"] == "assistant" for message in messages[turn.index + 1 :])
        if shared > len(closed):
            return None if is_last else shared
        # An earlier part of the chat is written otherwise than it was when this answer was asked for.
        header = opening[len(closed) :]
        at = text.rfind(header, before, turn.start)
        if at < 0 or is_last:
            raise Unrenderable(f"the chat template writes the prompt differently once an answer follows; {_ADVICE}")
        return at + len(header)

    def _end(self, text: str, turn: _Turn, message: Message) -> int:
        pattern = self._call_end if message.get("tool_calls") else self._special
        end = pattern.search(text, turn.end) or self._special.search(text, turn.end)
        if end is None:
            raise Unrenderable(f"the chat template does not end the assistant's turn with a special token; {_ADVICE}")
        return end.end()

    def _check(self, message: Message, turn: _Turn, written: str, is_last: bool, notes: dict[str, None]) -> None:
        """Checks that the thoughts and the calls of a turn are there."""
        if any(call["function"]["name"] not in written for call in message.get("tool_calls", ())):
            raise Unrenderable(f"the chat template does not write tool calls; {_ADVICE}")
        if (thought := _thought(turn.head)) and thought not in written:
            if is_last:
                raise Unrenderable(f"the chat template leaves the thinking out of the answer; {_ADVICE}")
            notes["the chat template leaves the thinking out of earlier turns"] = None

    def _continued(
        self, text: str, spans: list[Span], message: Message, opening: str, notes: dict[str, None]
    ) -> Marked:
        """Returns a last answer that goes on from the thought that generation opens, which the template writes nowhere else."""
        content = message["content"].lstrip()
        header = next((tag for tag in ("<think>\n", "<think>") if opening.endswith(tag)), None)
        if header is None or not content.startswith("<think>") or not self._end_token or message.get("tool_calls"):
            tail = opening[common_length(opening, text) :]
            raise Unrenderable(
                f"the chat template opens an answer with {tail!r}, but writes answers without it: begin the "
                f"completions with it, {_ADVICE}"
            )
        begin = content.removeprefix("<think>")
        whole = opening + (begin.removeprefix("\n") if header.endswith("\n") else begin) + self._end_token
        return Marked(whole, (*spans, Span(len(opening), len(whole), ROLE_ANSWER)), True, tuple(notes))


def parse_date(text: str) -> datetime.date:
    """Reads a date.

    Raises:
      DataError: it is none.
    """
    try:
        return datetime.date.fromisoformat(text)
    except ValueError as error:
        raise DataError(f"date {text!r}: expected year-month-day, like {DATE}") from error


def with_date(template: str, date: datetime.date) -> str:
    """Returns a template that writes one date where it wrote today's."""
    if "strftime_now" not in template:
        return template
    letters = [f"%{flag}{letter}" for flag in ("-", "") for letter in "aAbBcdDeFHIjmMpSuUVwWxXyYz"]
    midnight = datetime.datetime.combine(date, datetime.time())
    replaced = "".join(f"|replace({letter!r}, {midnight.strftime(letter)!r})" for letter in letters)
    return "{%- macro strftime_now(format) -%}{{- format" + replaced + " -}}{%- endmacro -%}" + template


def _any_of(words: set[str]) -> re.Pattern[str]:
    """Matches any of some words, the longest first: one may begin with another."""
    return re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))) or r"(?!)")


def _stripped(text: str) -> tuple[str, str, str]:
    return text.lstrip(), text.rstrip(), text.strip()


def _written(message: Message, no_content: bool, as_json: bool) -> Message:
    """Returns a message with calls as a template takes them."""
    if not message.get("tool_calls"):
        return message
    calls = message["tool_calls"]
    if as_json:
        calls = [call | {"function": call["function"] | {"arguments": _json(call)}} for call in calls]
    return {**message, "tool_calls": calls} | ({"content": None} if no_content and not message["content"] else {})


def _json(call: Mapping[str, Any]) -> str:
    arguments = call["function"]["arguments"]
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _with_mark(message: Message, index: int, mark: str) -> tuple[Message, _Turn]:
    """Returns the message with a mark for its content behind the thoughts, or for the name of its first call."""
    content = message["content"]
    thought = _THOUGHT.match(content)
    head = thought[0] if thought else ""
    if head == content and "tool_calls" in message:
        first, *others = message["tool_calls"]
        marked = {**first, "function": {**first["function"], "name": mark}}
        return {**message, "tool_calls": [marked, *others]}, _Turn(index, head, first["function"]["name"])
    head = "" if head == content else head
    return {**message, "content": head + mark}, _Turn(index, head, content[len(head) :])


def _thought(head: str) -> str:
    return head.rpartition("</think>")[0].rpartition("<think>")[2].strip()


def _behind(begun: str, turn: _Turn, text: str, before: int) -> int:
    """Returns where an answer goes on from its beginning."""
    if len(begun) >= len(turn.head):
        skipped = len(turn.tail) - len(turn.tail.lstrip()) if text[turn.start : turn.end] != turn.tail else 0
        written = text[turn.start : turn.end]
        skipped = skipped if not turn.tail.startswith(written) else 0
        return turn.start + max(0, len(begun) - len(turn.head) - skipped)
    at = text.find(begun.strip(), before, turn.start)
    if at < 0:
        raise Unrenderable(f"the chat template rewrites the beginning of the answer; {_ADVICE}")
    return at + len(begun.strip())
