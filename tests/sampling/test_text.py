"""Text while it arrives: whole characters, stop strings over several tokens."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from smallr.sampling.prompts import sample_key
from smallr.sampling.text import TextStream
from tests.sampling.models import letters

TEXT = "Grüße, 世界 🙂! a stop b\n\nend"


def ids(text: str) -> list[int]:
    return letters()(text)["input_ids"]


def streamed(text: str, stop=(), tokens=None) -> tuple[list[str], TextStream]:
    stream, pieces = TextStream(letters(), stop), []
    for token in ids(text) if tokens is None else tokens:
        stream.add(token)
        pieces.append(stream.take())
    stream.close()
    pieces.append(stream.take(final=True))
    return pieces, stream


def test_pieces_are_whole_characters():
    pieces, stream = streamed(TEXT)
    assert len(ids("世")) == 3  # bytes are tokens here
    assert "".join(pieces) == stream.text == TEXT
    assert all("\ufffd" not in piece for piece in pieces)
    assert "🙂" in pieces


@pytest.mark.parametrize(
    ("stop", "want"),
    [
        ((" stop",), "Grüße, 世界 🙂! a"),
        (("zzz", "st"), "Grüße, 世界 🙂! a "),
        (("界 🙂",), "Grüße, 世"),
        (("\n\n", " b\n"), "Grüße, 世界 🙂! a stop"),
        (("G",), ""),
        (("stopp",), TEXT),
    ],
)
def test_stop_strings_over_tokens(stop, want):
    pieces, stream = streamed(TEXT, stop)
    assert "".join(pieces) == stream.text == want  # nothing of a stop string was ever given out
    assert stream.stopped == (want != TEXT)


def test_the_beginning_of_a_stop_string_is_held_back_until_it_is_none():
    pieces, _ = streamed("ab<en", ("<end>",))
    assert pieces == ["a", "b", "", "", "", "<en"]
    pieces, _ = streamed("a<e!", ("<end>",))
    assert pieces == ["a", "", "", "<e!", ""]


def test_broken_bytes_become_replacement_characters_at_the_end():
    broken = ids("ok世")[:-1]
    pieces, stream = streamed("", tokens=broken)
    assert pieces[:2] == ["o", "k"]
    assert stream.text == letters().decode(broken)
    assert stream.text.startswith("ok\ufffd")


def test_random_bytes_stream_to_their_decoding():
    rng = np.random.default_rng(0)
    for _ in range(20):
        tokens = rng.integers(1, 257, 30).tolist()
        pieces, stream = streamed("", tokens=tokens)
        assert "".join(pieces) == stream.text
        assert stream.text.replace("\ufffd", "") == letters().decode(tokens).replace("\ufffd", "")


def test_keys_differ_by_prompt_seed_round_and_sample():
    cases = list(itertools.product(([1], [2], [1, 2], [12]), (None, 0, 1, 11, -1), (0, 1, 11), (0, 1, 11)))
    keys = [tuple(sample_key(np.asarray(ids), *rest)) for ids, *rest in cases]
    assert len(set(keys)) == len(cases)
    assert keys == [tuple(sample_key(np.asarray(ids), *rest)) for ids, *rest in cases]
