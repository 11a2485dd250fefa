"""Compares the implementations of attention with the dense rule and with each other."""

from __future__ import annotations

import jax
import numpy as np

from smallr.doctor.findings import Findings
from smallr.doctor.pairs import draw_lengths, make_step_rows
from smallr.models.attention_choice import TOLERANCE, Packing, candidate, disagreement, try_candidates
from smallr.models.attention_support import AttentionShape, DeviceFacts
from smallr.models.config import DecoderConfig

# Rules that a kernel may get wrong where plain rows are right; on few tokens.
RULES = {
    "grouped heads, float32": {"dtype": "float32"},
    "windows by layer and soft-cap, float32": {"dtype": "float32", "windows": (None, 37), "softcap": 20.0},
    "window, bfloat16": {"dtype": "bfloat16", "windows": (37,)},
}


def check_rules(findings: Findings, length: int) -> None:
    """Adds whether the attention that runs without being chosen obeys the rule."""
    for name, fields in RULES.items():
        shape = AttentionShape(rows=2, length=length, heads=4, kv_heads=2, head_dim=64, **fields)
        error, most = disagreement(candidate("auto", shape), shape), TOLERANCE[shape.dtype]
        text = f"{error:.1e} from the dense rule, values and gradients (at most {most:.0e})"
        findings.add("attention rule", name, text, wrong=not error <= most, error=error)


def measure_candidates(findings: Findings, name: str, model: DecoderConfig, rows: int, length: int) -> None:
    """Adds how each candidate of this device does on packed pairs; one that disagrees is wrong."""
    step = make_step_rows(draw_lengths("short prompts", rows * length // 100, length), rows, length, 99, shared=True)
    shape = AttentionShape.of(model, rows, length, examples=step.batch.example.shape[1])
    packing = Packing(step.batch.horizon[: shape.rows], step.batch.positions[: shape.rows])
    visible = _visible_pairs(packing)
    flops = 3.5 * 4 * shape.heads * shape.head_dim * visible
    about = f"{name}, {shape.rows} x {length}, {shape.dtype}"
    for trial in try_candidates(shape, DeviceFacts.of(jax.local_devices()[0]), packing):
        # What raises, or differs from call to call, is a note; what is wrong is not.
        wrong = trial.error is not None and not trial.error <= TOLERANCE[shape.dtype]
        if trial.seconds is None:
            text = f"left out: {trial.note}"
        else:
            rate = flops / trial.seconds
            text = f"{1e3 * trial.seconds:.2f} ms forward + backward, {rate / 1e9:,.0f} GFLOP/s of visible pairs, "
            text += f"{trial.error:.1e} from the dense rule"
        findings.add("attention", f"{trial.impl}: {about}", text, wrong=wrong, seconds=trial.seconds, error=trial.error)


def _visible_pairs(packing: Packing) -> int:
    index = np.arange(packing.horizon.shape[1])
    return int(np.clip(packing.horizon - index, 0, None).sum())  # queries from a key itself to its horizon
