"""Makes pairs padded arrays of token ids, for the peers that compute every pair at one fixed length."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.protocol import read_pairs

ROUND = 32  # lengths are rounded up to a multiple of this


def shared_start(first: list[int], second: list[int]) -> int:
    """Returns how many tokens both texts begin with."""
    differs = (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differs, min(len(first), len(second)))


def tokenise(job: dict[str, Any], tokenizer: Any) -> list[tuple[list[int], list[int], list[int]]]:
    """Returns token ids of prompt, chosen and rejected of every pair of the job.

    As TRL does it: the chat template turns the prompt alone and both whole conversations into tokens, and a completion
    is what follows the tokens that they share with the prompt.
    """
    ids = lambda turns, **kwargs: tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False, **kwargs)  # noqa: E731
    triples = []
    for pair in read_pairs(job):
        prompt = ids(pair["prompt"], add_generation_prompt=True)
        chosen, rejected = (ids(pair["prompt"] + pair[side]) for side in ("chosen", "rejected"))
        start = min(shared_start(prompt, chosen), shared_start(prompt, rejected))
        triples.append((prompt[:start], chosen[start:], rejected[start:]))
    return triples


def pad(texts: list[list[int]], length: int, filler: int, left: bool = False) -> dict[str, np.ndarray]:
    """Returns `ids` and `mask`, both int32 [texts, length]."""
    ids = np.full((len(texts), length), filler, np.int32)
    mask = np.zeros((len(texts), length), np.int32)
    for row, text in enumerate(texts):
        kept = slice(length - len(text), length) if left else slice(0, len(text))
        ids[row, kept], mask[row, kept] = text, 1
    return {"ids": ids, "mask": mask}


def batches(job: dict[str, Any], tokenizer: Any) -> list[dict[str, dict[str, np.ndarray]]]:
    """Yields a batch a step: `ids` and `mask` of prompt (padded left), chosen and rejected (right), all steps at the same lengths.

    The lengths are the largest of the whole job, rounded up to a multiple of 32.
    """
    triples = tokenise(job, tokenizer)
    used = [triples[i] for group in job["groups"] for i in group]
    longest = [max(len(triple[side]) for triple in used) for side in range(3)]
    prompt, completion = (-(-n // ROUND) * ROUND for n in (longest[0], max(longest[1:])))
    filler = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    made = []
    for group in job["groups"]:
        sides = zip(*(triples[i] for i in group), strict=True)
        prompts, chosen, rejected = (list(side) for side in sides)
        made.append(
            {
                "prompt": pad(prompts, prompt, filler, left=True),
                "chosen": pad(chosen, completion, filler),
                "rejected": pad(rejected, completion, filler),
            }
        )
    return made
