"""Tries a chat template, which is a program, in a process with limits before it is used."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from smallr.core.cache import Cache
from smallr.core.errors import UserError
from smallr.models.schema import TEMPLATE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SECONDS, MEGABYTES, CHARACTERS = 5, 1024, 1_000_000
_TRIAL = Path(__file__).with_name("chat_template_trial.py")
_VERSION = 1


def check_template(template: str | dict[str, str] | None, name: str) -> None:
    """Renders small conversations with a template, which must end within limits.

    What passed once is kept in the cache. Errors that the template raises on a conversation are its right.

    Args:
      template: of a tokenizer; several by name.
      name: of the model, for messages.

    Raises:
      UserError: a syntax error, or more than 5 s, 1 GB or a million characters.
    """
    for text in template.values() if isinstance(template, dict) else [template]:
        if text is None:
            continue
        if problem := TEMPLATE.problem(text):
            raise UserError(f"model {name!r}: chat template: {problem}")
        if reason := _reason(text):
            raise UserError(f"model {name!r}: its chat template {reason}")


@functools.lru_cache(maxsize=256)
def _reason(template: str) -> str:
    """Says why a template is refused; empty if it is not."""
    cache, identity = Cache("templates"), f"{_VERSION} {template}"
    if cache.get(identity) is not None:
        return ""
    limits = {"template": template, "seconds": SECONDS, "bytes": MEGABYTES * 2**20, "characters": CHARACTERS}
    command = [sys.executable, "-I", str(_TRIAL)]
    try:
        done = subprocess.run(command, input=json.dumps(limits), capture_output=True, text=True, timeout=2 * SECONDS)
    except subprocess.TimeoutExpired:
        return f"does not end within {2 * SECONDS} s"
    if done.returncode:
        return f"does not end within {SECONDS} s of computing, or needs over {MEGABYTES} MB"
    if not done.stdout:
        cache.put(identity, b"")
    return done.stdout


def end_of_turn(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """Returns the special token with which the chat template ends an answer, if there is one."""
    if not tokenizer.chat_template:
        return ()
    answer = "thirty-one"
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:  # a template for other roles
        return ()
    after = tokenizer(text.rpartition(answer)[2], add_special_tokens=False)["input_ids"]
    # A special token need not be one of those that tokenizer_config.json names.
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return tuple(token for token in after if token in special or token in tokenizer.all_special_ids)[:1]
