"""Reading tokens and roles back: references that do not use the offsets that the code uses."""

from __future__ import annotations

import numpy as np


def whole(example, side=0):
    """Tokens and roles of prefix + completion."""
    completion = example.completions[side]
    roles = np.concatenate([np.zeros(len(example.prefix), np.int32), completion.roles])
    return np.concatenate([example.prefix, completion.tokens]).tolist(), roles.tolist()


def text_by_role(tokenizer, example, role, side=0):
    tokens, roles = whole(example, side)
    return tokenizer.decode([t for t, r in zip(tokens, roles, strict=True) if r == role])


def byte_spans(tokenizer, ids):
    """Bytes [start, end) of each token of a byte-level BPE, from its vocabulary alone."""
    table = {c: i for i, c in zip(_byte_order(), _byte_characters(), strict=True)}
    specials = set(tokenizer.all_special_tokens)
    spans, at = [], 0
    for token in tokenizer.convert_ids_to_tokens(ids):
        size = len(token.encode()) if token in specials else len(bytes(table[c] for c in token))
        spans.append((at, at + size))
        at += size
    return spans


def _byte_order():
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return visible + [b for b in range(256) if b not in visible]


def _byte_characters():
    visible = _byte_order()[:188]
    return [chr(b) for b in visible] + [chr(256 + i) for i in range(256 - len(visible))]


def expected_roles(tokenizer, ids, spans):
    """Roles by bytes: `spans` are (start, end, role); of two a token overlaps, the later."""
    roles = [0] * len(ids)
    for start, end, role in spans:
        for i, (a, b) in enumerate(byte_spans(tokenizer, ids)):
            if b > start and a < end:
                roles[i] = role
    return roles


def size(text):
    return len(text.encode())
