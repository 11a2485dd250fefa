"""Turns tokens into text while they arrive: in whole characters, up to the first stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BROKEN = "\ufffd"  # what bytes that are no whole character decode to
_LONGEST_CHARACTER = 8  # tokens; more that do not decode are no character to wait for


class TextStream:
    """Collects the text of one completion, token by token.

    Attributes:
      text: all that is certain; it ends before the first stop string.
      stopped: a stop string was found.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stop: Sequence[str] = ()):
        self.text = ""
        self.stopped = False
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._tokens: list[int] = []
        self._start = 0  # tokens from here on are decoded together
        self._read = 0  # tokens before here are in the text
        self._given = 0

    def add(self, token: int, decode: bool = True) -> None:
        """Takes the next token; after `stopped` it has no effect. Without `decode` the text waits for `close`."""
        if self.stopped:
            return
        self._tokens.append(token)
        if not decode:
            return
        before = self._decode(self._start, self._read)
        now = self._decode(self._start, len(self._tokens))
        waits = now.endswith(_BROKEN) and len(self._tokens) - self._read < _LONGEST_CHARACTER
        if waits or len(now) < len(before):
            return
        self._append(now[len(before) :])
        self._start, self._read = self._read, len(self._tokens)

    def close(self) -> None:
        """Ends the text: bytes that wait for the rest of their character become replacement characters."""
        if not self.stopped and self._read < len(self._tokens):
            before = self._decode(self._start, self._read)
            self._append(self._decode(self._start, len(self._tokens))[len(before) :])
            self._start, self._read = self._read, len(self._tokens)

    def take(self, final: bool = False) -> str:
        """Returns the text since the last call, without what may be the beginning of a stop string."""
        end = len(self.text) if final or self.stopped else len(self.text) - self._withheld()
        text = self.text[self._given : end]
        self._given = max(self._given, end)
        return text

    def _append(self, text: str) -> None:
        longest = max(map(len, self._stop), default=0)
        begin = max(len(self.text) - longest + 1, 0)
        self.text += text
        found = [start for stop in self._stop if (start := self.text.find(stop, begin)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def _withheld(self) -> int:
        """Returns the length of the longest end of the text that a stop string begins with."""
        longest = max(map(len, self._stop), default=0)
        for length in range(min(longest - 1, len(self.text)), 0, -1):
            if any(stop.startswith(self.text[-length:]) for stop in self._stop):
                return length
        return 0

    def _decode(self, start: int, end: int) -> str:
        return self._tokenizer.decode(self._tokens[start:end], skip_special_tokens=True)
