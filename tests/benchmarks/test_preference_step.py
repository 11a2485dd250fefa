"""What the benchmark of the step reads as pairs, and what it counts."""

from __future__ import annotations

from benchmarks.abstract_step import SHAPES, Pairs
from benchmarks.peers.ours import computed_flops, needed_flops
from benchmarks.preference_step import beside_the_peer, texts_of


def test_texts_of_pairs_stay_as_they_are():
    rows = [{"prompt": "p", "chosen": "c", "rejected": "r", "gap": "small"}]
    assert texts_of(rows) == rows


def test_the_turns_of_a_chat_become_one_prompt():
    said = [("human", "Hi."), ("gpt", "Hello."), ("human", "Tell me more.")]
    turns = [{"from": who, "value": text} for who, text in said]
    row = {
        "conversations": turns,
        "chosen": {"from": "gpt", "value": "Yes."},
        "rejected": {"from": "gpt", "value": "No."},
    }
    assert texts_of([row]) == [{"prompt": "Hi.\n\nHello.\n\nTell me more.", "chosen": "Yes.", "rejected": "No."}]


def test_a_teachers_row_is_rejected_with_the_rationale_of_another_question():
    rows = [{"question": f"q{i}", "rationale": f"r{i}", "answer": f"a{i}"} for i in range(3)]
    texts = texts_of(rows)
    assert [text["prompt"] for text in texts] == ["q0", "q1", "q2"]
    assert [text["chosen"] for text in texts] == [f"r{i} The answer is a{i}." for i in range(3)]
    assert [text["rejected"] for text in texts] == [f"r{i} The answer is a{i}." for i in (2, 0, 1)]


def test_computed_flops_are_those_of_all_places_and_of_the_key_tiles_taken():
    """64 tokens each of prompt, chosen, rejected, padding: both query tiles of 128 take two key tiles of 64."""
    model = SHAPES["tiny"]
    batch = Pairs(rows=1, row_length=256, prompt=64, completion=64).batch()
    layers = 2 * model.num_layers * model.layer_matmul_params * 256
    product = 2 * model.num_layers * model.num_heads * model.head_dim * 2 * 2 * 128 * 64
    head = 2 * model.vocab_size * model.d_model * 128
    assert computed_flops(model, batch, live_reference=False) == 3 * layers + 7 * product + 4 * head
    assert computed_flops(model, batch, live_reference=True) == 4 * layers + 9 * product + 5 * head


def test_needed_flops_are_of_real_tokens_and_visible_pairs():
    model = SHAPES["tiny"]
    batch = Pairs(rows=1, row_length=256, prompt=64, completion=64).batch()
    visible = 64 * 65 / 2 + 2 * (64 * 64 + 64 * 65 / 2)
    assert needed_flops(model, batch) == 3 * model.forward_flops(192, visible, 128)


def test_each_peer_is_measured_by_its_own_matmul_peak():
    result = {"case": "default", "peer": "trl", "dtype": "float32", "needed": [2e12], "seconds": ([5.0], [20.0])}
    line = beside_the_peer(result | {"matmul_peak": (500e9, 200e9)})
    assert "2.00 needed TFLOP: smallr 500 GFLOP/s, 80% of it; peer 200 GFLOP/s, 50% of it; peaks 2.50 : 1" in line
    assert "not known" in beside_the_peer(result | {"matmul_peak": (500e9, None)})
