"""Writes the start-up summary of a run, and its final report on the screen and in the workdir."""

from __future__ import annotations

import dataclasses
import json
import platform
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax
import jax
from ml_collections import ConfigDict

from smallr import __version__
from smallr.core.files import write_text
from smallr.core.stages import RUN
from smallr.data.packing import describe
from smallr.data.rows import GAPS
from smallr.data.sources import is_builtin
from smallr.losses.logprobs import chunking
from smallr.training.progress import log, table
from smallr.training.splits import Split, attended_pairs

if TYPE_CHECKING:
    from smallr.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Costs:
    """Counts the work of one step on average over an epoch.

    Attributes:
      flops: forward and backward on real tokens with the prompt of a pair once, causal attention counted as the half
        that it is, the head on scored tokens, and the forward pass of a reference that runs in the step; of the
        weights' gradients those that are trained. Recomputation is not counted.
      peak: FLOP/s of all devices in the compute dtype, or None where it is not known.
      tokens: of a step's rows, padding included.
    """

    flops: float = 0.0
    peak: float | None = None
    tokens: int = 0


def costs(trainer: Trainer, peak: float | None) -> Costs:
    """Counts the work of a step; `peak` is that of one device."""
    split, epoch = trainer.training, trainer.training.plan.stats(0)
    model = trainer.partition.config
    scored = int((split.plan.drawn(0) * split.plan.sizes.scored).sum())
    forward = model.forward_flops(epoch.tokens, attended_pairs(split), scored)
    # Forward, the gradient of activations, that of the weights that are trained, a reference in the step.
    passes = 2 + share_trained(trainer) + trainer.reference.runs_in_step
    return Costs(
        flops=passes * forward / epoch.steps,
        peak=None if peak is None else peak * jax.device_count(),
        tokens=trainer.config.batch.rows * trainer.config.batch.row_length,
    )


def share_trained(trainer: Trainer) -> float:
    """Returns the trained parameters as a share of the model's."""
    if not trainer.partition.digest:
        return 1.0
    return sum(x.size for x in jax.tree.leaves(trainer.params)) / trainer.partition.config.num_params


def start(trainer: Trainer) -> None:
    """Prints what is about to happen; in the run's mesh (`jax.set_mesh`)."""
    rows = [*_rows_of_model(trainer), *_rows_of_step(trainer)]
    epochs = trainer.steps / trainer.training.plan.stats(0).steps
    rows += [
        ("run", f"{trainer.steps} steps, {epochs:.1f} epochs, in {trainer.workdir}"),
        ("start-up", trainer.clock.line()),
    ]
    log(table(("", ""), rows))


def _rows_of_model(trainer: Trainer) -> list[tuple[str, str]]:
    config, model = trainer.config, trainer.partition.config
    mesh = " x ".join(f"{axis} {size}" for axis, size in trainer.mesh.shape.items())
    rows = [("model", f"{config.model}: {model.num_params / 1e6:.1f} M parameters, compute in {config.compute.dtype}")]
    if (share := share_trained(trainer)) < 1:
        rows.append(("trained", f"{share * model.num_params / 1e6:.2f} M parameters; the others are frozen"))
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind} on {jax.process_count()} host(s), mesh {mesh}"
    return [*rows, ("devices", devices)]


def _rows_of_step(trainer: Trainer) -> list[tuple[str, str]]:
    config, plan, work = trainer.config, trainer.training.plan, trainer.costs
    about, memory = describe(plan), trainer.program.memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    held -= memory.alias_size_in_bytes
    peak = f"peak {work.peak / 1e12:.2f} TFLOP/s" if work.peak else "peak of this device not known, so no MFU"
    return [
        ("training data", _describe_split(trainer.training)),
        ("held-out data", _describe_split(trainer.heldout) if trainer.heldout else "none"),
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
        ("attention", f"{trainer.attention.impl}, {trainer.attention.reason}"),
        ("head", _describe_head(trainer)),
        (
            "work",
            f"{work.flops / 1e12:.2f} TFLOP a step (forward + backward, real tokens, causal half; no recomputation); {peak}",
        ),
        ("memory", f"{held / 2**30:.2f} GiB a device for state, batch and activations (the compiler's estimate)"),
    ]


def _describe_head(trainer: Trainer) -> str:
    config, plan = trainer.config, trainer.training.plan
    tokens = plan.rows_per_step // config.batch.accumulation * plan.shape.scored
    vocabulary = trainer.partition.config.vocab_size
    count, size = chunking(vocabulary, tokens, config.compute.logp_chunk, jax.default_backend())
    chosen = "by platform" if config.compute.logp_chunk == 0 else "as set"
    return f"logits of {tokens} tokens in {count} chunk(s) of {size} entries ({chosen})"


def _describe_split(split: Split) -> str:
    epoch, report = split.plan.stats(0), split.examples.report
    dropped = sum(tally.count for tally in report.dropped.values())
    return (
        f"{report.source}: {report.total:,} of {split.available:,} rows, {dropped:,} dropped; {epoch.examples:,} examples, "
        f"{epoch.tokens:,} tokens, {epoch.scored:.0%} scored, {epoch.rows:,} packed rows"
    )


def result(trainer: Trainer, after: dict[str, float] | None) -> dict[str, Any]:
    """Returns what is known of a run as it stands; `after` is None for one that is not at its end."""
    epoch = trainer.training.plan.stats(0)
    return {
        "model": trainer.config.model,
        "objective": trainer.config.objective.name,
        "steps": trainer.step,
        "finished": after is not None,
        "rows": counts(trainer),
        "epoch": {"steps": epoch.steps, "tokens": epoch.tokens},
        "before": before(trainer),
        "after": after,
        "seconds": {**trainer.clock.laps, "total": trainer.clock.total()},
        "checkpoint": str(trainer.workdir / "checkpoints" / str(trainer.step)),
        "best": _best(trainer, after or {}),
        "hf_folders": trainer.publisher.counts(),
        "environment": _environment(trainer),
    }


def _best(trainer: Trainer, after: dict[str, float]) -> dict[str, Any] | None:
    """Returns which evaluation was the best one, and what it measured."""
    best = trainer.best
    measured = {name: best.metrics[name] for name in after if name in best.metrics}
    return {"step": best.step, "metric": best.metric, "value": best.value, "metrics": measured} if best.step else None


def _processor() -> str:
    """Returns the name of the host's processor, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()


def _environment(trainer: Trainer) -> dict[str, str]:
    """Returns what the run ran on."""
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {jax.process_count()} process(es)"
    return {
        "devices": devices,
        "processor": _processor(),
        "mesh": ", ".join(f"{axis} {size}" for axis, size in trainer.mesh.shape.items()),
        "versions": f"smallr {__version__}, jax {jax.__version__}, flax {flax.__version__}, Python {platform.python_version()}",
    }


def counts(trainer: Trainer) -> dict[str, int]:
    """Returns how many rows there were, the examples made of them, and the rows left out by reason."""
    report = trainer.training.examples.report
    dropped = {reason: tally.count for reason, tally in report.dropped.items()}
    return {"read": report.total, "examples": len(trainer.training.examples), **dropped}


def before(trainer: Trainer) -> dict[str, float]:
    """Returns the metrics before training; empty if they are of other held-out rows than those of now."""
    known, heldout = trainer.baseline, trainer.heldout
    if known is None or heldout is None or known["data"] != heldout.examples.fingerprint:
        return {}
    return known["metrics"]


def finish(trainer: Trainer, after: dict[str, float] | None) -> dict[str, Any]:
    """Prints and writes the report; `after` is None for a run that was stopped early.

    Returns:
      What is written to `report.json`.
    """
    found, workdir = result(trainer, after), trainer.workdir
    text = [f"step {trainer.step} of {trainer.steps}; {trainer.clock.line()}"]
    if found["before"] and after:
        columns = {"before": found["before"], "after": after}
        if trainer.best.step not in (0, trainer.step):
            columns["best"] = found["best"]["metrics"]
        text += ["", "Held-out examples, before and after training:", "", _comparison(columns)]
    text += [
        "",
        f"checkpoint   {found['checkpoint']}",
        f"metrics      {workdir / 'metrics.jsonl'}{_trackers(trainer)}",
    ]
    if trainer.best.step:
        text += [f"best         {trainer.best.line()}: this checkpoint stands for the run"]
    text += trainer.publisher.lines()
    if not is_stage(trainer):
        text += ["", "next:", *(f"  {line}" for line in next_commands(trainer))]
    if jax.process_index() == 0:
        write_text(workdir / "report.json", json.dumps(found, indent=2) + "\n")
        write_text(workdir / "report.txt", "\n".join(text) + "\n")
    log("\n" + "\n".join(text))
    return found


def _trackers(trainer: Trainer) -> str:
    return f" (and {', '.join(trainer.config.track.to)})" if trainer.config.track.to else ""


def _comparison(evaluations: dict[str, dict[str, float]]) -> str:
    """Makes a table with one line for each metric and evaluation; metrics that exist per gap have a column for each."""
    names = evaluations["after"]
    gaps = [gap for gap in GAPS if any(name.endswith(f"/{gap}") for name in names)]
    rows = []
    for name in (name for name in names if "/" not in name):
        for label, values in evaluations.items():
            per_gap = [_number(values.get(f"{name}/{gap}")) for gap in gaps]
            rows.append((name if label == "before" else "", label, _number(values.get(name)), *per_gap))
    return table(("metric", "", "all", *(f"{gap} gap" for gap in gaps)), rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def is_stage(trainer: Trainer) -> bool:
    """Returns whether the run is a stage of a job: the job goes on with it, and training on would change what it has used."""
    return (trainer.workdir / RUN).exists()


def next_commands(trainer: Trainer) -> list[str]:
    """Returns command lines that make sense after this run; what the user has to fill in is in capitals."""
    config, workdir = trainer.config, shlex.quote(str(trainer.workdir))
    again = f"smallr train --workdir={workdir}"
    if trainer.step < trainer.steps:
        return [f"{again}   # goes on from step {trainer.step}"]
    longer = f"--config.epochs={config.epochs + 1}" if config.epochs else f"--config.steps={2 * trainer.steps}"
    if config.epochs and config.steps:
        longer += " --config.steps=0"
    if trainer.best.exhausted:
        longer += " --config.best.patience=0"
    lines = [(f"{again} {longer} --config.optimizer.on_extend=rewarm", "train on")]
    if "soft" in config:
        lines += [(f"smallr convert --from={workdir} --to=FOLDER --adapter_only", "export the soft prompts")]
    else:
        if config.objective.name in ("sft", "rationale"):
            pairs = "" if _on_builtin(config) else " --config.data.train=PAIRS.jsonl"
            lines += [(f"smallr train cogpo --config.model={workdir}{pairs}", "preference training from here")]
        lines += [(f"smallr generate --model={workdir} --interactive", "ask it")]
        lines += [(f"smallr convert --from={workdir} --to=FOLDER", "for the Hugging Face ecosystem")]
        lines += [(f"smallr push --model={workdir} --repo=OWNER/NAME", "to the Hugging Face hub")]
    if config.objective.name == "preference" and _on_builtin(config):
        variant = ",smoke" if config.model == "tiny-random" else ""
        lines += [(f"smallr train preference:ipo{variant}", "another loss")]
    lines += [(f"smallr report {workdir}", "a page with curves and tables")]
    lines += [
        (
            f"tensorboard --logdir={shlex.quote(str(trainer.workdir.parent))}",
            "curves of all runs; pip install tensorboard",
        )
    ]
    width = max(len(command) for command, _ in lines)
    return [f"{command:<{width}}   # {about}" for command, about in lines]


def _on_builtin(config: ConfigDict) -> bool:
    return isinstance(config.data.train, str) and is_builtin(config.data.train)
