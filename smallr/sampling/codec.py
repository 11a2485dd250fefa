"""Turns requests into tokens and tokens into text, for an engine and for whoever asks it beside its work."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from smallr.core.errors import UserError, panics_as_errors
from smallr.data.quick_tokenizer import whole
from smallr.sampling.prompts import prompt_ids
from smallr.sampling.requests import Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class PromptCodec:
    """Holds a tokenizer with what an engine knows of its model. Any thread may use it.

    Args:
      tokenizer: of the model.
      vocab_size: number of rows of the model's embedding.
      soft: number of its soft tokens.
      most: characters of a text that a prompt of the engine can hold.
      date: that the chat template writes where it writes today's.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, vocab_size: int, *, soft: int, most: int | None, date: datetime.date
    ):
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._soft, self._most, self._date = soft, most, date

    def encode(self, request: Request, *, specials: bool | None = None, is_bounded: bool = False) -> list[int]:
        """Returns the tokens of a request's prompt.

        Args:
          request: its messages or prompt.
          specials: add what the tokenizer adds to a text; None: to a plain prompt, and not to messages.
          is_bounded: a text that is too long for the engine is refused without being tokenised.

        Raises:
          UserError: see `prompt_ids`.
        """
        options = {"soft": self._soft, "date": self._date, "most": self._most if is_bounded else None}
        return prompt_ids(request, self._tokenizer, self._vocab_size, specials=specials, **options)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of tokens, special ones included.

        Raises:
          UserError: a token that the tokenizer does not have.
        """
        count = len(self._tokenizer)
        if wrong := [token for token in ids if not 0 <= token < count]:
            raise UserError(f"tokens: token id {wrong[0]} is not below the tokenizer's {count}")
        with panics_as_errors("tokens"):
            return self._tokenizer.decode(list(ids))

    def info(self) -> dict[str, Any]:
        """Returns the special tokens and the chat template."""
        names = ("bos_token", "eos_token", "pad_token", "unk_token", "chat_template")
        fields = {name: getattr(self._tokenizer, name) for name in names}
        return {"tokenizer_class": type(whole(self._tokenizer)).__name__} | fields
