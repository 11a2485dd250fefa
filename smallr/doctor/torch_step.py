"""Times the same preference step in PyTorch, in a process of its own: `python -m smallr.doctor.torch_step < JOB.json`.

It is what a careful PyTorch trainer does: chosen and rejected as rows of their own, each with its prompt, padded on the
right, so that attention is plain causal (flash where PyTorch has it) without a mask; logits of scored tokens alone; fused
AdamW; `torch.compile` on GPUs. Nothing but the standard library is imported before the job is read.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SECONDS = 600  # of a peer's whole run


def is_installed() -> bool:
    """Returns whether the peer can run here."""
    return importlib.util.find_spec("torch") is not None


def run_peer(model: dict[str, Any], lengths: Sequence[Sequence[int]], dtype: str, steps: int) -> dict[str, Any]:
    """Runs the peer and returns what it found, or {"error": …}.

    Args:
      model: sizes, under the names of `DecoderConfig`.
      lengths: of prompt, chosen and rejected of each pair.
      dtype: of products; weights are float32.
      steps: that are timed.
    """
    job = {"model": model, "lengths": [list(each) for each in lengths], "dtype": dtype, "steps": steps}
    command = [sys.executable, "-m", "smallr.doctor.torch_step"]
    try:
        done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return {"error": f"it took more than {SECONDS} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def matmul_peak(dtype: str) -> float:
    """Returns the FLOP/s of square products in PyTorch, on its GPU or on all cores."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 8192 if device == "cuda" else 2048
    a = torch.randn(size, size, device=device).to(getattr(torch, dtype))
    best, stop = float("inf"), time.perf_counter() + 0.5
    for call in range(1000):
        start = time.perf_counter()
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        if call:
            best = min(best, time.perf_counter() - start)
        if call >= 3 and time.perf_counter() > stop:
            break
    return 2 * size**3 / best


def main() -> None:
    """Reads a job from standard input and writes a line of JSON."""
    job = json.loads(sys.stdin.read())
    import torch

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    peaks = {dtype: matmul_peak(dtype) for dtype in ("float32", "bfloat16")}
    step, compiled = _make_step(job, device)
    seconds, losses = [], []
    for _ in range(job["steps"] + (3 if compiled else 1)):
        start = time.perf_counter()
        losses.append(float(step()))
        seconds.append(time.perf_counter() - start)
    found = {
        "seconds": min(seconds[-job["steps"] :]),
        "loss": losses[0],
        "peaks": peaks,
        "bytes": torch.cuda.max_memory_allocated() if device == "cuda" else _resident_peak(),
        "version": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads",
        "compiled": compiled,
    }
    print(json.dumps(found))


def _make_step(job: dict[str, Any], device: str) -> tuple[Any, bool]:
    """Returns a function that takes one step and returns its loss, and whether it is compiled."""
    import torch

    model, compiled = _model(job["model"], device), device == "cuda"
    ids, places, targets, side = (x.to(device) for x in _padded(job["lengths"], job["model"]["vocab_size"]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=device == "cuda")
    pairs = len(job["lengths"])

    def loss_of() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=job["dtype"] == "bfloat16"):
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            logits = model.lm_head(hidden.flatten(0, 1)[places]).float()
        logps = torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]
        scores = torch.zeros(2 * pairs, device=device).index_add(0, side, logps)
        margin = 0.1 * (scores[:pairs] - scores[pairs:])
        return -torch.nn.functional.logsigmoid(margin).mean()

    forward = torch.compile(loss_of) if compiled else loss_of

    def step() -> torch.Tensor:
        loss = forward()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step, compiled


def _model(sizes: dict[str, Any], device: str) -> Any:
    import torch
    import transformers

    names = {
        "vocab_size": "vocab_size",
        "hidden_size": "d_model",
        "intermediate_size": "d_ff",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "num_key_value_heads": "num_kv_heads",
        "head_dim": "head_dim",
        "tie_word_embeddings": "tie_embeddings",
        "attention_bias": "qkv_bias",
    }
    config = transformers.LlamaConfig(**{theirs: sizes[ours] for theirs, ours in names.items()})
    config._attn_implementation = "sdpa"
    with torch.device(device):
        return transformers.LlamaForCausalLM(config).float().train()


def _padded(lengths: Sequence[Sequence[int]], vocabulary: int) -> tuple[torch.Tensor, ...]:
    """Returns ids [2 pairs, L], the flat index of each logit that is needed, its target, and the row it belongs to."""
    import torch

    rows = [(p, c) for p, c, _ in lengths] + [(p, r) for p, _, r in lengths]
    longest = max(map(sum, rows))
    ids = torch.randint(3, vocabulary, (len(rows), longest))
    places, targets, side = [], [], []
    for row, (prompt, completion) in enumerate(rows):
        at = torch.arange(prompt, prompt + completion)
        places.append(row * longest + at - 1)
        targets.append(ids[row, at])
        side.append(torch.full((completion,), row))
    return ids, *(torch.cat(x) for x in (places, targets, side))


def _resident_peak() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
