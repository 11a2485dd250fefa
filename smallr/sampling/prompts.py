"""Turns requests into token ids by the tokenizer's own template, and finds the tokens that end a completion."""

from __future__ import annotations

import datetime
import hashlib
import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int, UInt32

from smallr.core.errors import UserError, panics_as_errors
from smallr.data.quick_tokenizer import whole
from smallr.data.templates import with_date
from smallr.models.hf import read_generation_config
from smallr.sampling.requests import Request, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from smallr.models.loading import ModelSource


def prompt_ids(
    request: Request,
    tokenizer: PreTrainedTokenizerFast,
    vocab_size: int,
    *,
    soft: int = 0,
    most: int | None = None,
    date: datetime.date | None = None,
    specials: bool | None = None,
) -> list[int]:
    """Encodes the prompt of a request to one token or more.

    Messages go through the chat template, as `Request` says. Plain text gets the special tokens that the tokenizer
    adds. Token ids stay as they are; `soft` of them, below 0, are vectors of the model's soft prompts.

    Args:
      request: messages or a prompt.
      tokenizer: of the model.
      vocab_size: number of rows of the model's embedding.
      soft: number of its soft tokens.
      most: characters of a text beyond which it is refused without being tokenised.
      date: that the chat template writes where it writes today's; None leaves it today's.
      specials: add special tokens; None: to a plain text, and not to messages, whose template writes them.

    Raises:
      UserError: a text that is no Unicode, no chat template, one that refuses the messages, an id without an
        embedding, no token at all.
    """
    if request.messages:
        for number, message in enumerate(request.messages):
            for field, text in message.items():
                _check_text(text, f"messages[{number}].{field}")
        _check_length("messages", sum(len(message["content"]) for message in request.messages), most)
        text = _rendered(request, tokenizer, date)
        with panics_as_errors("messages"):
            ids = tokenizer(text, add_special_tokens=bool(specials))["input_ids"]
    elif isinstance(request.prompt, str):
        _check_text(request.prompt, "prompt")
        _check_length("prompt", len(request.prompt), most)
        with panics_as_errors("prompt"):
            ids = tokenizer(request.prompt, add_special_tokens=specials is not False)["input_ids"]
    else:
        ids = list(request.prompt)
        if wrong := [token for token in ids if not -soft <= token < vocab_size]:
            raise UserError(
                f"prompt: token id {wrong[0]} is neither below the vocabulary's {vocab_size} nor one of {soft} soft tokens"
            )
    if not ids:
        raise UserError("prompt: it has no tokens")
    return ids


def _check_text(text: str, field: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{field}: character {error.start + 1} is U+{ord(text[error.start]):04X}, half of a surrogate pair (a cut "
            "emoji?), which is no text"
        ) from None


def _check_length(field: str, count: int, most: int | None) -> None:
    if most is not None and count > most:
        raise UserError(f"{field}: {count} characters are more than the tokens of max_length can hold ({most})")


def _rendered(request: Request, tokenizer: PreTrainedTokenizerFast, date: datetime.date | None) -> str:
    if not tokenizer.chat_template:
        name = tokenizer.name_or_path or "this model"
        raise UserError(f"messages: the tokenizer of {name} has no chat template; give a plain prompt")
    if request.template_kwargs and (taken := _taken(request.template_kwargs, tokenizer)):
        raise UserError(f"chat_template_kwargs: {taken[0]} is not a variable that can be set")
    messages = [dict(message) for message in request.messages]
    opens, continues = request.add_generation_prompt, request.continue_final_message
    if opens is None and continues is None:
        continues = messages[-1]["role"] == "assistant"
    if opens is None:
        opens = not continues
    try:
        template = tokenizer.get_chat_template()
        return tokenizer.apply_chat_template(
            messages,
            chat_template=template if date is None else with_date(template, date),
            tokenize=False,
            add_generation_prompt=opens,
            continue_final_message=bool(continues),
            **request.template_kwargs,
        )
    except ImportError:
        raise
    except Exception as error:  # a template raises what it likes
        raise UserError(f"messages: the chat template refuses them: {error}") from error


def _taken(given: Iterable[str], tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Returns those of some names that are arguments of the rendering itself."""
    return sorted({"messages", *inspect.signature(whole(tokenizer).apply_chat_template).parameters}.intersection(given))


def end_ids(source: ModelSource) -> tuple[int, ...]:
    """Reads which tokens end a completion from a model's `generation_config.json`, or from its `config.json`.

    Raises:
      UserError: the file is malformed.
    """
    stored = read_generation_config(source.folder)
    ends = (source.hf if stored is None else stored).get("eos_token_id")
    ends = [ends] if isinstance(ends, int) else ends or []
    return tuple(end for end in ends if 0 <= end < source.config.vocab_size)


def stop_ids(
    request: Request, tokenizer: PreTrainedTokenizerFast, ends: tuple[int, ...], vocab_size: int
) -> frozenset[int]:
    """Returns the tokens that end the completions of a request.

    They are the model's own, those asked for, and stop strings that are special tokens, which no text ever shows.

    Raises:
      UserError: a token that the model does not have.
    """
    params = request.params
    if wrong := [token for token in params.stop_token_ids if token >= vocab_size]:
        raise UserError(f"stop_token_ids: token id {wrong[0]} is not below the vocabulary's {vocab_size}")
    special = {str(token): id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = {special[stop] for stop in params.stop if stop in special}
    return frozenset(named | set(params.stop_token_ids) | (set() if params.ignore_eos else set(ends)))


def check_adjustments(
    params: SamplingParams, tokenizer: PreTrainedTokenizerFast, ends: tuple[int, ...], vocab_size: int
) -> None:
    """Checks the changes of logits that a request asks for.

    Raises:
      UserError: a bias of a token that the model does not have; a grammar with stops that would cut it short.
    """
    if wrong := [token for token, _ in params.logit_bias if token >= vocab_size]:
        raise UserError(f"logit_bias: token id {wrong[0]} is not below the vocabulary's {vocab_size}")
    if params.grammar is None:
        return
    if any(stop not in tokenizer.all_special_tokens for stop in params.stop):
        raise UserError("stop: a text that follows a grammar ends where the grammar does; leave out one of the two")
    if not set(params.stop_token_ids) <= {*ends, *tokenizer.all_special_ids}:
        raise UserError(
            "stop_token_ids: a text that follows a grammar ends where the grammar does; leave out one of the two"
        )


def sample_key(
    ids: Int[np.ndarray, "tokens"], seed: int | None, round_number: int, sample: int
) -> UInt32[np.ndarray, "2"]:
    """Returns the key of one completion's random numbers.

    It is a function of the seed, the round, the prompt and the number of the sample, and of nothing else.
    """
    digest = hashlib.sha256(f"{seed} {round_number} {sample} ".encode() + np.asarray(ids, np.int32).tobytes()).digest()
    return np.frombuffer(digest[:8], np.uint32)
