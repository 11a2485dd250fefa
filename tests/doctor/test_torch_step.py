"""PyTorch's step beside ours: the same pairs, the same loss."""

from __future__ import annotations

import json
import sys

import pytest

from smallr.doctor import torch_step

SIZES = {
    "vocab_size": 64, "d_model": 32, "d_ff": 48, "num_layers": 1, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8,
    "tie_embeddings": True, "qkv_bias": False,
}  # fmt: skip


@pytest.mark.parity
def test_a_step_is_taken_and_described(monkeypatch, capsys):
    import io

    job = {"model": SIZES, "lengths": [[3, 2, 4], [5, 1, 1]], "dtype": "float32", "steps": 1}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(job)))
    monkeypatch.setattr(torch_step, "matmul_peak", lambda dtype: 1e9)
    torch_step.main()
    found = json.loads(capsys.readouterr().out)
    assert found["seconds"] > 0
    assert found["loss"] == pytest.approx(0.693, abs=0.2), "random weights prefer little"
    assert found["peaks"] == {"float32": 1e9, "bfloat16": 1e9}


@pytest.mark.parity
def test_logits_are_those_before_each_scored_token():
    import torch

    ids, places, targets, side = torch_step._padded([[3, 2, 4], [5, 1, 1]], 64)
    assert ids.shape == (4, 7)
    assert side.tolist() == [0, 0, 1, 2, 2, 2, 2, 3]
    assert places.tolist() == [2, 3, 7 + 4, 14 + 2, 14 + 3, 14 + 4, 14 + 5, 21 + 4]
    assert torch.equal(targets, ids.flatten()[places + 1])


def test_what_goes_wrong_is_a_line(monkeypatch):
    monkeypatch.setattr(torch_step.sys, "executable", "false")
    assert torch_step.run_peer(SIZES, [[1, 1, 1]], "float32", 1) == {"error": "no message"}
