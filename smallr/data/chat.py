"""Rows -> texts with the spans of characters to score.

A chat is rendered by the tokenizer's own template, whole; the spans are found in that text. So what is scored never
depends on how parts would be tokenised by themselves, and the tokens are those of `apply_chat_template`.
"""

from __future__ import annotations

import dataclasses
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from smallr.data.batch import ROLE_ANSWER, ROLE_RATIONALE
from smallr.data.errors import DataError
from smallr.data.orders import FORMATS, PROMPT
from smallr.data.rows import Message, RationaleRow, TextRow, common_length

_ROLE_OF = {"answer": ROLE_ANSWER, "rationale": ROLE_RATIONALE}


class Unrenderable(Exception):
    """A single row that the template cannot show faithfully; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class Span:
    """Characters [start, end) of a text are scored under `role`."""

    start: int
    end: int
    role: int


@dataclasses.dataclass(frozen=True)
class Marked:
    """A text to tokenise.

    Attributes:
      text: prompt and completion.
      spans: scored characters, ascending, at least one.
      is_chat: rendered by a template, which writes every special token itself. Plain text gets the special tokens that
        the tokenizer adds, and EOS (scored, with the role of the last span).
    """

    text: str
    spans: tuple[Span, ...]
    is_chat: bool


def rationale_pieces(template: str) -> tuple[str, str, str, str, tuple[str, str]]:
    """Splits `head{question}mid{first}between{second}tail`: (head, mid, between, tail, (first, second)).

    Raises:
      DataError: the template is not of that form.
    """
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        raise DataError(f"format {template!r}: {error}") from error
    names = [name for _, name, _, _ in fields if name is not None]
    literals = [literal for literal, _, _, _ in fields] + [""] * (4 - len(fields))
    if len(names) != 3 or names[0] != "question" or set(names[1:]) != set(_ROLE_OF):
        raise DataError(
            f"format {template!r} must hold {{question}} and then {{answer}} and {{rationale}}, each once, "
            f"like {FORMATS['answer_first']!r}"
        )
    return literals[0], literals[1], literals[2], literals[3], (names[1], names[2])


def choice_pieces(template: str) -> tuple[str, str]:
    """What a prompt has before and behind `{question}`; no white space at its end.

    Raises:
      DataError: the question is not in it, or not once.
    """
    head, *tails = template.split("{question}")
    if len(tails) != 1:
        raise DataError(f"prompt {template!r} must hold {{question}} once, like {PROMPT!r}")
    return head, tails[0].rstrip()


def separator(template: str) -> str:
    """What ends the first part of a target, without white space around it; all of it where it is nothing else."""
    between = rationale_pieces(template)[2]
    return between.strip() or between


class Renderer:
    """Writes checked rows as marked texts for one tokenizer.

    Args:
      tokenizer: its chat template is used for messages, and for plain text if `chat`.
      chat: wrap a plain prompt as a user message and a plain completion as an assistant message.
      formats: of each order, see `rationale_pieces`. In a chat the question is the user's message, with what the format
        has before it; what it has behind the question is left out.
      prompt: of choice rows, see `choice_pieces`; in a chat likewise.

    Raises:
      DataError: `chat` without a chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        chat: bool,
        formats: Mapping[str, str] = FORMATS,
        prompt: str = PROMPT,
    ) -> None:
        self._tokenizer = tokenizer
        self._chat = chat
        self._pieces = {order: rationale_pieces(template) for order, template in formats.items()}
        self._around = choice_pieces(prompt)
        self._separators = {order: separator(template) for order, template in formats.items()}
        specials = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        specials |= {tokenizer.eos_token} if tokenizer.eos_token else set()
        # Longest first: one special token may begin with another.
        self._special = re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))) or r"(?!)")
        if chat:
            self._need_template("chat=True")

    def text_row(self, row: TextRow) -> tuple[Marked, ...]:
        """One marked text per completion."""
        if isinstance(row.prompt, str) and not self._chat:
            return tuple(_plain(row.prompt, completion) for completion in row.completions)
        prompt = _messages(row.prompt, "user")
        opening = self._opening(prompt)
        return tuple(self._turns(prompt, _messages(text, "assistant"), opening) for text in row.completions)

    def prompt(self, question: str, order: str) -> str:
        """All that stands before the target of a rationale row; in a chat it ends with the opening of the answer.

        Raises:
          Unrenderable: the chat template refuses the question.
        """
        lead = self._lead(question, order)
        return self._opening(_messages(lead, "user")) if self._chat else lead

    def choice_prompt(self, question: str) -> str:
        """All that stands before the token of a choice row.

        Raises:
          Unrenderable: the chat template refuses the question.
        """
        head, tail = self._around
        return self._opening(_messages(head + question, "user")) if self._chat else head + question + tail

    def _lead(self, question: str, order: str) -> str:
        head, mid, *_ = self._pieces[order]
        return head + question if self._chat else head + question + mid.rstrip()

    def rationale_row(self, row: RationaleRow, order: str) -> tuple[Marked]:
        """The target in an order; the answer alone where there is no rationale.

        What stands between the parts ends the first one and has its role, as EOS has the last one's. White space
        before a part belongs to that part, so that a prompt never ends in a space.

        Raises:
          Unrenderable: the part that is written first contains what is to end it.
        """
        _, mid, between, tail, names = self._pieces[order]
        parts = [(name, getattr(row, name)) for name in names if getattr(row, name) is not None]
        if self._separators[order] and self._separators[order] in parts[0][1]:
            raise Unrenderable(f"the separator {self._separators[order]!r} occurs in the {parts[0][0]}")
        lead = self._lead(row.question, order)
        body = "" if self._chat else mid[len(mid.rstrip()) :]
        ends = []
        for index, (_, value) in enumerate(parts):
            is_last = index == len(parts) - 1
            body += value + (tail if is_last else between.rstrip())
            ends.append(len(body))
            body += "" if is_last else between[len(between.rstrip()) :]
        roles = [_ROLE_OF[name] for name, _ in parts]
        if not self._chat:
            starts = [0, *ends[:-1]]
            spans = zip(starts, ends, roles, strict=True)
            return (Marked(lead + body, tuple(Span(len(lead) + a, len(lead) + b, r) for a, b, r in spans), False),)
        prompt = _messages(lead, "user")
        marked = self._turns(prompt, _messages(body, "assistant"), self._opening(prompt))
        (turn,) = marked.spans
        begin = marked.text.rfind(body.rstrip(), turn.start, turn.end)
        cuts = [turn.start, *(begin + end for end in ends[:-1]), turn.end]
        return (Marked(marked.text, tuple(map(Span, cuts[:-1], cuts[1:], roles)), True),)

    def _turns(self, prompt: Sequence[Message], completion: Sequence[Message], opening: str) -> Marked:
        """The whole chat, each assistant turn of the completion a span that ends with its end-of-turn token."""
        messages = [*prompt, *completion]
        text = self._render(messages)
        spans = []
        for index in range(len(prompt), len(messages)):
            if messages[index]["role"] != "assistant":
                continue
            before = opening if index == len(prompt) else self._opening(messages[:index])
            if not text.startswith(before):
                raise Unrenderable("the chat template writes the prompt differently once an answer follows")
            # The turn ends where the chat that stops here and the whole one part, at the latest.
            closed = text if index == len(messages) - 1 else self._render(messages[: index + 1])
            turn = self._masked(text[: common_length(text, closed)])
            content = self._masked(messages[index]["content"].strip())
            at = turn.rfind(content, len(before))
            if at < 0:
                raise Unrenderable("the chat template rewrites the completion")
            end = self._special.search(text, at + len(content))
            if end is None:
                raise Unrenderable("the chat template does not end the assistant's turn with a special token")
            spans.append(Span(len(before), end.end(), ROLE_ANSWER))
        return Marked(text, tuple(spans), True)

    def _masked(self, text: str) -> str:
        """The text without the letters of special tokens, so that the answer "m" is not found in `<|im_end|>`."""
        return self._special.sub(lambda match: "\0" * len(match[0]), text)

    def _opening(self, messages: Sequence[Message]) -> str:
        return self._render(messages, add_generation_prompt=True)

    def _render(self, messages: Sequence[Message], **options: Any) -> str:
        self._need_template("chat messages")
        try:
            return self._tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False, **options)
        except ImportError:
            raise  # a missing package is no fault of the row
        except Exception as error:  # a template raises what it likes, e.g. on roles out of turn
            raise Unrenderable(f"the chat template refuses the conversation: {error}") from error

    def _need_template(self, why: str) -> None:
        if not self._tokenizer.chat_template:
            raise DataError(
                f"{why}: the tokenizer of {self._tokenizer.name_or_path or 'this model'} has no chat template. Take the "
                "instruct model's tokenizer, set tokenizer.chat_template, or use rows of plain text with chat=False."
            )


def _plain(prompt: str, completion: str) -> Marked:
    text = prompt + completion
    return Marked(text, (Span(len(prompt), len(text), ROLE_ANSWER),), False)


def _messages(text: str | Sequence[Message], role: str) -> list[Message]:
    return [{"role": role, "content": text}] if isinstance(text, str) else list(text)
