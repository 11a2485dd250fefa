"""Encodes marked texts as tokens with roles, and makes examples of them."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int
from tokenizers import Encoding, Tokenizer

from smallr.core.errors import panics_as_errors
from smallr.data.batch import ROLE_ANSWER, ROLE_NONE, Completion, Example, soft_ids
from smallr.data.errors import DataError
from smallr.data.templates import LAST, Marked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def longest_text(tokenizer: PreTrainedTokenizerFast, tokens: int) -> int:
    """Returns a number of characters that no text of so many tokens exceeds.

    A text that is longer need not be tokenised to know that it does not fit: a row of 10 MB takes minutes.
    """
    longest = max(map(len, tokenizer.get_vocab()))
    composed = 4 if tokenizer.backend_tokenizer.normalizer is not None else 1  # four characters may become one
    return tokens * longest * composed


class Encoder:
    """Tokenises texts in one pass each and finds roles by offsets of characters.

    The Rust tokenizer is a copy: no padding and no cutting, and offsets that include white space, which byte-level
    tokenizers may trim.

    Raises:
      DataError: the tokenizer has no Rust backend or no EOS token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise DataError(f"{type(tokenizer).__name__} gives no offsets of characters; use a fast tokenizer")
        if tokenizer.eos_token_id is None:
            raise DataError(
                f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no EOS token, so no completion would "
                "have an end; set tokenizer.eos_token"
            )
        self.eos = int(tokenizer.eos_token_id)
        self._text = tokenizer.backend_tokenizer.to_str()
        self._eos_text = str(tokenizer.eos_token)
        self._bos = tokenizer.bos_token_id

    @property
    def definition(self) -> str:
        """Returns the Rust tokenizer as JSON, for keys of caches."""
        return _definition(self._text)

    @property
    def _backend(self) -> Tokenizer:
        return _copied(self.definition)  # where all texts are in a cache, there is none

    def __call__(self, texts: Sequence[Marked]) -> list[Completion]:
        """Returns tokens and roles of each whole text, prompt included."""
        encodings: list[Encoding | None] = [None] * len(texts)
        for is_chat in (False, True):
            chosen = [i for i, text in enumerate(texts) if text.is_chat == is_chat]
            batch = self._encode([texts[i].text for i in chosen], add_special_tokens=not is_chat)
            for i, encoding in zip(chosen, batch, strict=True):
                encodings[i] = encoding
        return [self._roles(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]

    def prompts(self, texts: Sequence[str], *, is_chat: bool) -> list[list[int]]:
        """Returns tokens of texts that are to be continued: as above, but nothing is added behind a text."""
        encodings = self._encode(list(texts), add_special_tokens=not is_chat)
        return [_before_end(encoding)[self._doubled(encoding) :] for encoding in encodings]

    def token_starts(self, text: str) -> list[int]:
        """Returns the characters at which the tokens of a text begin, each once."""
        (encoding,) = self._encode([text], add_special_tokens=False)
        return sorted({start for start, end in encoding.offsets if end > start})

    def _encode(self, texts: list[str], *, add_special_tokens: bool) -> list[Encoding]:
        with panics_as_errors(f"{len(texts)} texts, of which the first begins with {texts[0][:40]!r}" if texts else ""):
            return self._backend.encode_batch(texts, add_special_tokens=add_special_tokens)

    def _doubled(self, encoding: Encoding) -> int:
        """Returns 1 where the tokenizer puts a beginning before a text that begins with its own, else 0."""
        ids = encoding.ids
        return int(len(ids) > 1 and ids[0] == ids[1] == self._bos and encoding.offsets[0] == (0, 0))

    def _roles(self, text: Marked, encoding: Encoding) -> Completion:
        """A token belongs to a span if they overlap, and to the later one of two: a token that straddles the end of
        the prompt belongs to the completion.
        """
        skipped = 0 if text.is_chat else self._doubled(encoding)
        tokens = np.asarray(encoding.ids, np.int32)[skipped:]
        starts, ends = np.asarray(encoding.offsets, np.int64).reshape(-1, 2)[skipped:].T
        # Special tokens that the tokenizer adds behind the text have the offsets (0, 0).
        special = np.asarray(encoding.special_tokens_mask, bool)[skipped:]
        behind = special & (ends == 0) & (np.maximum.accumulate(ends) > 0)
        starts, ends = (np.where(behind, len(text.text), x) for x in (starts, ends))
        roles = np.full(len(tokens), ROLE_NONE, np.int32)
        for span in text.spans:
            first = np.searchsorted(ends, span.start, side="right")
            stop = np.searchsorted(starts, span.end, side="left")
            roles[first:stop] = span.role
        if not text.is_chat and not text.ends:
            tokens, roles = tokens[~behind], roles[~behind]
        elif not text.is_chat:
            if len(tokens) > 1 and tokens[-1] == tokens[-2] == self.eos and behind[-1]:
                tokens, roles = tokens[:-1], roles[:-1]  # the text has an end of its own
            if (not len(tokens) or tokens[-1] != self.eos) and not self._ended(text.text):
                tokens, roles = np.append(tokens, np.int32(self.eos)), np.append(roles, np.int32(ROLE_NONE))
            roles[-1] = text.spans[-1].role
        columns = {name: _at_tokens(points, starts, roles) for name, points in text.points.items()}
        return Completion(tokens, roles, {}, columns)

    def _ended(self, text: str) -> bool:
        """Returns whether a text ends with EOS, and white space as templates write it behind."""
        return text.rstrip().endswith(self._eos_text)


def _at_tokens(
    points: Sequence[tuple[int, float]], starts: Int[np.ndarray, "n"], roles: Int[np.ndarray, "m"]
) -> Float[np.ndarray, "scored"]:
    """Returns a number for each scored token: the sum of those at its characters.

    A character of several tokens counts for the last of them.
    """
    scored = np.flatnonzero(roles != ROLE_NONE)
    values = np.zeros(len(roles), np.float32)
    for character, number in points:
        index = scored[-1] if character == LAST else np.searchsorted(starts, character, side="right") - 1
        values[index] += number
    return values[scored]


def _before_end(encoding: Encoding) -> list[int]:
    """Returns the ids without special tokens that the tokenizer adds behind the text."""
    ids = list(encoding.ids)
    while ids and encoding.special_tokens_mask[len(ids) - 1] and encoding.offsets[len(ids) - 1] == (0, 0):
        ids.pop()
    return ids


@functools.lru_cache(maxsize=2)  # training and held-out rows share one, which may have 10^5 words
def _copied(definition: str) -> Tokenizer:
    return Tokenizer.from_str(definition)


@functools.lru_cache(maxsize=2)
def _definition(text: str) -> str:
    return json.dumps(_whole(json.loads(text)), sort_keys=True)


def backend_definition(tokenizer: PreTrainedTokenizerFast) -> dict:
    """Returns the Rust tokenizer as JSON values, without the state that calls leave in it (padding, truncation)."""
    return _whole(json.loads(tokenizer.backend_tokenizer.to_str()))


def _whole(definition: dict) -> dict:
    """Makes a Rust tokenizer cut, pad and trim nothing."""
    definition["padding"] = definition["truncation"] = None

    def untrim(part: object) -> None:
        if isinstance(part, dict):
            if "trim_offsets" in part:
                part["trim_offsets"] = False
            for value in part.values():
                untrim(value)
        elif isinstance(part, list):
            for value in part:
                untrim(value)

    untrim(definition.get("post_processor"))
    return definition


def to_example(wholes: Sequence[Completion], columns: Mapping[str, float], row: int) -> Example | None:
    """Splits whole texts into the shared prefix and one completion each; None if no token is left for the prefix.

    The prefix is the leading tokens that all texts share before the first scored token of any. Where the texts
    straddle the end of the prompt differently, a completion begins with tokens of the prompt, not scored.
    """
    limit = min(int(np.argmax(whole.roles > ROLE_NONE)) for whole in wholes)
    first = wholes[0].tokens[:limit]
    shared = min((_common(first, whole.tokens[:limit]) for whole in wholes[1:]), default=limit)
    if shared == 0:
        return None
    completions = tuple(
        Completion(whole.tokens[shared:], whole.roles[shared:], {}, whole.token_columns) for whole in wholes
    )
    return Example(first[:shared], completions, columns, row)


def without_first(whole: Completion) -> Completion:
    """Returns the tokens with the first not scored: nothing stands before it."""
    roles = whole.roles.copy()
    roles[:1] = ROLE_NONE
    return Completion(whole.tokens, roles)


def choice_ids(encoder: Encoder, choices: Sequence[str]) -> tuple[int, int]:
    """Returns the first token of each of two texts.

    Raises:
      DataError: an empty text, or two that begin with the same token.
    """
    tokens = encoder.prompts(choices, is_chat=True)  # no special tokens
    if not all(tokens) or tokens[0][0] == tokens[1][0]:
        raise DataError(f"choices {list(choices)!r}: they must begin with different tokens of this tokenizer")
    return tokens[0][0], tokens[1][0]


def choice_example(
    prefix: Sequence[int], choices: tuple[int, int], columns: Mapping[str, float], row: int
) -> Example | None:
    """Returns a prompt with two completions of one scored token each; None if the prompt has no token."""
    if not len(prefix):
        return None
    role = np.full(1, ROLE_ANSWER, np.int32)
    completions = tuple(Completion(np.full(1, choice, np.int32), role) for choice in choices)
    return Example(np.asarray(prefix, np.int32), completions, columns, row)


def with_soft_tokens(example: Example, number: int, length: int) -> Example:
    """Returns the example with the `length` tokens of soft prompt `number` in front of its prompt."""
    if not length:
        return example
    return dataclasses.replace(example, prefix=np.concatenate([soft_ids(number, length), example.prefix]))


def _common(a: Int[np.ndarray, "n"], b: Int[np.ndarray, "n"]) -> int:
    """Returns the length of the common beginning of two arrays of one length."""
    differ = a != b
    return int(np.argmax(differ)) if differ.any() else len(a)
