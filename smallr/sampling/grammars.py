"""Holds completions to a grammar: which tokens may come next, by llguidance. Needs the extra `structured`."""

from __future__ import annotations

import collections
import json
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from smallr.core.errors import UserError, panics_as_errors
from smallr.sampling.requests import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from transformers import PreTrainedTokenizerFast

BITS = 32  # tokens of a word of a mask
KEPT = 64  # compiled grammars
MAX_CHARACTERS = 2**16  # of a grammar
# A small model that may write any number of spaces between the parts of a JSON text may never end.
WHITESPACE = r"[ \t\n]{0,40}"


class Constraint:
    """Follows one completion through its grammar.

    Args:
      matcher: of the library.
      known: a bit for each token that the model has a logit for.
    """

    def __init__(self, matcher: LLMatcher, known: Int[np.ndarray, "W"]):
        self._matcher, self._known = matcher, known

    def copy(self) -> Constraint:
        """Returns a constraint in the same state, for another completion."""
        return Constraint(self._matcher.deep_copy(), self._known)

    def fill(self, words: Int[np.ndarray, "W"]) -> None:
        """Writes a bit for each token: whether it may come next.

        Raises:
          UserError: the grammar outgrows the limits of its library, or no token may come.
        """
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        self._check()
        words &= self._known
        if not words.any():
            raise UserError("it cannot be followed: the model's vocabulary has no token that may come next")

    def take(self, token: int) -> bool:
        """Goes on by a token; returns whether the text is complete and nothing may follow.

        Raises:
          UserError: the token may not come here, or the grammar outgrows the limits of its library.
        """
        self._matcher.consume_token(token)
        self._check()
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UserError(f"it cannot be followed: {_short(self._matcher.get_error())}")


class GrammarCompiler:
    """Compiles grammars for one tokenizer, and keeps the last ones. Any thread may use it.

    Args:
      tokenizer: of the model.
      vocab_size: number of tokens that the model has logits for.
      ends: tokens that end a completion, which may come where the grammar is complete.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, vocab_size: int, ends: Sequence[int]):
        self._tokenizer, self._vocab_size, self._ends = tokenizer, max(vocab_size, len(tokenizer)), list(ends)
        bits = np.arange(self.words * BITS) < vocab_size
        self._known = np.packbits(bits, bitorder="little").view("<i4")
        self._lock = threading.Lock()
        self._own: LLTokenizer | None = None  # made for the first grammar, which takes up to a second
        self._kept: collections.OrderedDict[Grammar, Constraint] = collections.OrderedDict()

    @property
    def words(self) -> int:
        """Returns the length of a mask."""
        return -(-self._vocab_size // BITS)

    def compile(self, grammar: Grammar) -> Constraint:
        """Returns a constraint at its beginning.

        Raises:
          UserError: llguidance is not installed, or does not take the grammar.
        """
        with self._lock:
            if (found := self._kept.get(grammar)) is not None:
                self._kept.move_to_end(grammar)
                return found.copy()
        constraint = self._compiled(grammar)
        with self._lock:
            self._kept[grammar] = constraint
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return constraint.copy()

    def _compiled(self, grammar: Grammar) -> Constraint:
        try:
            import llguidance
        except ModuleNotFoundError as error:
            raise UserError(
                f"{grammar.kind}: needs llguidance, which is not installed: pip install llguidance"
            ) from error
        if len(grammar.text) > MAX_CHARACTERS:
            raise UserError(
                f"{grammar.kind}: {len(grammar.text)} characters are more than the {MAX_CHARACTERS} of a grammar"
            )
        limits = llguidance.LLParserLimits(verbose_errors=False)
        with panics_as_errors(grammar.kind):
            try:
                written = _written(grammar)
            except (ValueError, TypeError) as error:
                raise UserError(f"{grammar.kind}: {_short(str(error))}") from error
            matcher = llguidance.LLMatcher(self._vocabulary(), written, log_level=0, limits=limits)
        # The first mask builds most of what the library keeps of a grammar: here, and not in the engine's thread.
        constraint = Constraint(matcher, self._known)
        try:
            constraint.fill(np.zeros(self.words, np.int32))
        except UserError as error:
            raise UserError(f"{grammar.kind}: {error}") from error
        return constraint

    def _vocabulary(self) -> LLTokenizer:
        import llguidance.hf

        with self._lock:
            if self._own is None:
                ends = self._ends or None
                self._own = llguidance.hf.from_tokenizer(self._tokenizer, n_vocab=self._vocab_size, eos_token=ends)
            return self._own


def _written(grammar: Grammar) -> Any:
    """Returns a grammar as llguidance reads it."""
    from llguidance import LLMatcher, grammar_from

    if grammar.kind == "json":
        return LLMatcher.grammar_from_json_schema(grammar.text, overrides={"whitespace_pattern": WHITESPACE})
    if grammar.kind == "choice":
        return LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, json.loads(grammar.text))))
    return grammar_from(grammar.kind, grammar.text)


def _short(message: str) -> str:
    """Returns the first lines of what a library says, as one line."""
    return " ".join(message.split())[:300]
