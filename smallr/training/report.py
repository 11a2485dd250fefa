"""What a run says of itself: the start-up summary, and the final report on the screen and in the workdir."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax

from smallr.data.packing import describe
from smallr.data.rows import GAPS
from smallr.losses.logprobs import chunking
from smallr.models.attention import describe as describe_attention
from smallr.training.progress import log, table
from smallr.training.setup import Run
from smallr.training.splits import attended_pairs
from smallr.training.timing import Clock


@dataclasses.dataclass(frozen=True)
class Costs:
    """Work of one step on average over an epoch.

    Attributes:
      flops: forward and backward on real tokens with the prompt of a pair once, causal attention counted as the half
        that it is, the head on scored tokens, and a live reference's forward pass; of the
        weights' gradients those that are trained. Recomputation is not counted.
      peak: FLOP/s of all devices in the compute dtype, or None where it is not known.
      slots: tokens of a step's rows, padding included.
    """

    flops: float
    peak: float | None
    slots: int


def costs(run: Run, peak: float | None) -> Costs:
    """Counts the work of a step; `peak` is that of one device."""
    split, epoch = run.training, run.training.plan.stats(0)
    forward = run.model.forward_flops(epoch.tokens, attended_pairs(split), int(split.plan.sizes.scored.sum()))
    # Forward, the gradient of activations, that of the weights that are trained, a live reference.
    passes = 2 + run.share_trained + (run.objective.reference == "live")
    return Costs(
        flops=passes * forward / epoch.steps,
        peak=None if peak is None else peak * jax.device_count(),
        slots=run.config.batch.rows * run.config.batch.row_length,
    )


def start(run: Run, costs: Costs, clock: Clock) -> None:
    """Prints what is about to happen; in the run's mesh (`jax.set_mesh`)."""
    config, plan = run.config, run.training.plan
    mesh = " x ".join(f"{axis} {size}" for axis, size in run.mesh.shape.items())
    memory = run.step.memory_analysis()
    about = describe(plan)
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    held -= memory.alias_size_in_bytes
    rows = [
        ("model", f"{config.model}: {run.model.num_params / 1e6:.1f} M parameters, compute in {config.compute.dtype}"),
        *_trained_row(run),
        (
            "devices",
            f"{jax.device_count()} x {jax.devices()[0].device_kind} on {jax.process_count()} host(s), mesh {mesh}",
        ),
        ("training data", _describe_split(run.training)),
        ("held-out data", _describe_split(run.heldout) if run.heldout else "none"),
        (
            "a step",
            f"{plan.rows_per_step} rows x {plan.shape.tokens} tokens in {config.batch.accumulation} micro-batch(es), "
            f"{plan.shape.scored} scored positions a row; {about.epoch.examples / about.epoch.steps:.1f} examples on average",
        ),
        (
            "packing",
            f"{about.epoch.padding:.1%} padding; {about.epoch.saved:.1%} of tokens saved by storing prompts once; "
            f"longest example {about.longest} of {plan.shape.tokens}",
        ),
        ("attention", describe_attention(config.compute.attention, jax.default_backend())),
        ("head", _describe_head(run)),
        (
            "work",
            f"{costs.flops / 1e12:.2f} TFLOP a step (forward + backward, real tokens, causal half; no recomputation)"
            + (
                f"; peak {costs.peak / 1e12:.2f} TFLOP/s"
                if costs.peak
                else "; peak of this device not known, so no MFU"
            ),
        ),
        ("memory", f"{held / 2**30:.2f} GiB a device for state, batch and activations (the compiler's estimate)"),
        ("run", f"{run.steps} steps, {run.steps / about.epoch.steps:.1f} epochs, in {run.workdir}"),
        ("start-up", clock.line()),
    ]
    log(table(("", ""), rows))


def _trained_row(run: Run) -> list[tuple[str, str]]:
    if run.share_trained == 1:
        return []
    return [("trained", f"{run.share_trained * run.model.num_params / 1e6:.2f} M parameters; the others are frozen")]


def _describe_head(run: Run) -> str:
    config, plan = run.config, run.training.plan
    tokens = plan.rows_per_step // config.batch.accumulation * plan.shape.scored
    count, size = chunking(run.model.vocab_size, tokens, config.compute.logp_chunk, jax.default_backend())
    chosen = "by platform" if config.compute.logp_chunk == 0 else "as set"
    return f"logits of {tokens} tokens in {count} chunk(s) of {size} entries ({chosen})"


def _describe_split(split: Any) -> str:
    epoch, report = split.plan.stats(0), split.examples.report
    dropped = sum(tally.count for tally in report.dropped.values())
    return (
        f"{report.source}: {epoch.examples} examples ({dropped} dropped of {report.total}), {epoch.tokens} tokens, "
        f"{epoch.scored:.0%} scored, {epoch.rows} rows"
    )


def finish(
    run: Run, step: int, before: dict[str, float], after: dict[str, float] | None, clock: Clock
) -> dict[str, Any]:
    """Prints and writes the report; `after` is None for a run that was stopped early.

    Returns:
      What is written to `report.json`.
    """
    checkpoint = str(run.workdir / "checkpoints" / str(step))
    result = {
        "model": run.config.model,
        "objective": run.config.objective.name,
        "steps": step,
        "finished": after is not None,
        "before": before,
        "after": after,
        "seconds": {**clock.laps, "total": clock.total()},
        "checkpoint": checkpoint,
    }
    text = [f"step {step} of {run.steps}; {clock.line()}"]
    if before and after:
        text += ["", "Held-out examples, before and after training:", "", _comparison(before, after)]
    text += ["", f"checkpoint   {checkpoint}", f"metrics      {run.workdir / 'metrics.jsonl'} (and TensorBoard events)"]
    text += ["", "next:", *(f"  {line}" for line in _next_commands(run))]
    if jax.process_index() == 0:
        (run.workdir / "report.json").write_text(json.dumps(result, indent=2) + "\n")
        (run.workdir / "report.txt").write_text("\n".join(text) + "\n")
    log("\n" + "\n".join(text))
    return result


def _comparison(before: dict[str, float], after: dict[str, float]) -> str:
    """One line a metric; metrics that exist per gap have a column for each."""
    gaps = [gap for gap in GAPS if any(name.endswith(f"/{gap}") for name in after)]
    rows = []
    for name in (name for name in after if "/" not in name):
        for label, values in (("before", before), ("after", after)):
            per_gap = [_number(values.get(f"{name}/{gap}")) for gap in gaps]
            rows.append((name if label == "before" else "", label, _number(values.get(name)), *per_gap))
    return table(("metric", "", "all", *(f"{gap} gap" for gap in gaps)), rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _next_commands(run: Run) -> list[str]:
    return [
        f"python -m smallr.train --config=FILE --workdir={run.workdir} --config.epochs={run.config.epochs + 1}   # train on",
        "python -m smallr.train --config=configs/dpo.py                                       # one beta for all gaps",
        "python -m smallr.train --config=configs/cogpo.py --config.objective.beta.large=1.0   # another strength",
        f"tensorboard --logdir={run.workdir.parent}   # curves of all runs; pip install tensorboard",
    ]
