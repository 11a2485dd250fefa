"""Requests to token ids, by the tokenizer's own template, and the tokens that end a completion."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

from smallr.core.errors import UserError
from smallr.sampling.requests import Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from smallr.models.loading import ModelSource


def prompt_ids(request: Request, tokenizer: PreTrainedTokenizerFast, vocab_size: int, soft: int = 0) -> list[int]:
    """The tokens of a request's prompt, at least one.

    Messages go through the chat template, with the opening of an answer behind them; a last message of the assistant is
    continued instead. Plain text gets the special tokens that the tokenizer adds. Token ids stay as they are; `soft` of
    them, below 0, are vectors of the model's soft prompts.

    Raises:
      UserError: no chat template, one that refuses the messages, an id without an embedding, no token at all.
    """
    if request.messages:
        ids = tokenizer(_rendered(request, tokenizer), add_special_tokens=False)["input_ids"]
    elif isinstance(request.prompt, str):
        ids = tokenizer(request.prompt)["input_ids"]
    else:
        ids = list(request.prompt)
        if wrong := [token for token in ids if not -soft <= token < vocab_size]:
            raise UserError(
                f"prompt: token id {wrong[0]} is neither below the vocabulary's {vocab_size} nor one of {soft} soft tokens"
            )
    if not ids:
        raise UserError("prompt: it has no tokens")
    return ids


def _rendered(request: Request, tokenizer: PreTrainedTokenizerFast) -> str:
    if not tokenizer.chat_template:
        name = tokenizer.name_or_path or "this model"
        raise UserError(f"messages: the tokenizer of {name} has no chat template; give a plain prompt")
    messages = [dict(message) for message in request.messages]
    continued = messages[-1]["role"] == "assistant"
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=not continued, continue_final_message=continued
        )
    except ImportError:
        raise
    except Exception as error:  # a template raises what it likes
        raise UserError(f"messages: the chat template refuses them: {error}") from error


def end_of_turn(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """The special token with which the chat template ends an answer, if there is one."""
    if not tokenizer.chat_template:
        return ()
    answer = "thirty-one"
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:  # a template for other roles
        return ()
    after = tokenizer(text.rpartition(answer)[2], add_special_tokens=False)["input_ids"]
    return tuple(token for token in after if token in tokenizer.all_special_ids)[:1]


def end_ids(source: ModelSource) -> tuple[int, ...]:
    """The tokens that a model's `generation_config.json`, or its `config.json`, say end a completion.

    Raises:
      UserError: the file is not JSON.
    """
    path = source.folder / "generation_config.json" if source.folder else None
    try:
        stored = json.loads(path.read_text()) if path and path.exists() else source.hf
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    ends = stored.get("eos_token_id")
    ends = [ends] if isinstance(ends, int) else ends or []
    return tuple(end for end in ends if 0 <= end < source.config.vocab_size)


def stop_ids(request: Request, tokenizer: PreTrainedTokenizerFast, ends: tuple[int, ...]) -> frozenset[int]:
    """The tokens that end the completions of a request: the model's own, those asked for, and stop strings that are
    special tokens, which no text ever shows.
    """
    special = {str(token): id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = {special[stop] for stop in request.params.stop if stop in special}
    return frozenset(named | set(request.params.stop_token_ids) | (set() if request.params.ignore_eos else set(ends)))


def sample_key(ids: list[int], seed: int | None, sample: int) -> np.ndarray:
    """uint32 [2], the key of one completion: of the seed, or of the prompt if there is none, and the sample's number."""
    source = np.asarray(ids, np.int32).tobytes() if seed is None else str(seed).encode()
    digest = hashlib.sha256(source + f":{sample}".encode()).digest()
    return np.frombuffer(digest[:8], np.uint32)
