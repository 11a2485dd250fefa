"""Finds the prompt at the beginning of a completion, and takes it out."""

from __future__ import annotations

from collections.abc import Sequence

_CUE = "Assistant:"


def continuation(prompt: str, completion: str) -> str | None:
    """Returns what follows the prompt in a completion that begins with it; None where it does not.

    White space before the two, and behind the prompt, may differ.
    """
    stem, begun = prompt.strip(), completion.lstrip()
    if not stem or not begun.startswith(stem):
        return None
    whole = prompt.lstrip()
    return begun.removeprefix(whole if begun.startswith(whole) else stem)


def answer_of(rest: str) -> str:
    """Returns the answer of a chat from what follows the prompt: without the space and the cue that join them."""
    return rest.lstrip().removeprefix(_CUE).lstrip()


def is_sure(prompt: str, rests: Sequence[str]) -> bool:
    """Returns whether a row alone shows that its completions repeat the prompt.

    A prompt of a word or two may begin an answer by chance ("Hello", "Hello there!"), and one that is the whole
    completion may be what was asked for.
    """
    ends = not prompt.rstrip()[-1].isalnum()
    is_long = len(prompt.split()) > 2
    return all(rest.strip() and (ends or (is_long and (rest[0].isspace() or prompt[-1].isspace()))) for rest in rests)
