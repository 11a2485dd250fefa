"""Finds held-out examples that are trained on too."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator

import numpy as np

from smallr.data.token_set import TokenSet


def shared_examples(training: TokenSet, held_out: TokenSet) -> int:
    """Counts the held-out examples whose tokens are also those of a training example, whatever rows they come from."""
    held = Counter(_digests(held_out))  # the smaller of the two: training sets may be larger than memory
    found = {digest for digest in _digests(training) if digest in held}
    return sum(held[digest] for digest in found)


def _digests(examples: TokenSet) -> Iterator[bytes]:
    """Yields a hash of each example: of its tokens, with where its parts begin."""
    tokens = examples.tokens
    for index, (start, stop) in enumerate(zip(examples.starts[:-1], examples.starts[1:], strict=True)):
        lengths = np.atleast_1d(examples.prefix_lengths[index]), np.atleast_1d(examples.completion_lengths[index])
        digest = hashlib.blake2b(np.concatenate(lengths).astype(np.int64).tobytes(), digest_size=16)
        digest.update(np.ascontiguousarray(tokens[start:stop]).tobytes())
        yield digest.digest()
