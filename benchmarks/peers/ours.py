"""Runs smallr's worker: the run that `python -m smallr.train` prepares, one step at a time."""

from __future__ import annotations

import tempfile
import time
from typing import Any

from benchmarks.peers.protocol import Worker


def config_of(job: dict[str, Any]) -> Any:
    """Returns the configuration of a job: DPO with a constant learning rate."""
    from smallr.config import add_lora, finish, preference

    config = preference()
    if job["lora"]:
        add_lora(config, rank=job["lora"], alpha=2 * job["lora"])
    config.model = job["model"]
    config.compute.dtype = job["dtype"]
    config.compute.update(job.get("compute", {}))
    config.data.train, config.data.train_split, config.data.eval = job["pairs"], "train", ""
    config.batch.rows, config.batch.row_length = job["rows"], job["row_length"]
    config.batch.packing, config.batch.share_prompt = job.get("packing", True), job.get("share_prompt", True)
    config.objective.reference = job["reference"]
    config.optimizer.learning_rate = job["learning_rate"]
    config.optimizer.schedule, config.optimizer.warmup = "constant", 0.0
    config.epochs, config.steps = 0, job["steps"]
    return finish(config, None)


def computed_flops(model: Any, batch: Any, live_reference: bool) -> float:
    """FLOPs of all products of a step on a CPU, as it computes them: layers for every place of a row, attention for the key
    tiles that it takes, the head twice forward. That `remat="dots"` computes attention's last product again is not counted.
    """
    from smallr.models.attention_xla import CPU, make_rule

    rows, length = batch.horizon.shape
    tiling = CPU.of(length)
    rules = (make_rule(batch.horizon[r : r + 1], batch.positions[r : r + 1], None, tiling) for r in range(rows))
    pairs = sum(int((rule.parts * rule.width).sum()) for rule in rules) * tiling.queries * tiling.keys
    scored = batch.target.size
    forward = model.forward_flops(rows * length, pairs, scored)
    again = model.forward_flops(0, pairs / 2, scored)  # one of attention's two products, and the logits
    return (4 if live_reference else 3) * forward + again


def needed_flops(model: Any, batch: Any) -> float:
    """Returns FLOPs of a step that no layout saves: real tokens with prompts once, visible pairs, scored tokens, no reference."""
    import numpy as np

    horizon = np.asarray(batch.horizon)
    visible = np.clip(horizon - np.arange(horizon.shape[1]), 0, None).sum()
    return 3 * model.forward_flops(int((horizon > 0).sum()), int(visible), int((np.asarray(batch.role) > 0).sum()))


def main() -> None:
    """Prepares, tells which pairs each step holds, then steps on demand."""
    worker = Worker()
    import jax

    from smallr.core.cache import cache_dir
    from smallr.training.flops import peak_flops
    from smallr.training.trainer import Trainer

    job = worker.job
    jax.config.update("jax_compilation_cache_dir", str(cache_dir("compiled")))
    config = config_of(job)
    with tempfile.TemporaryDirectory() as workdir, Trainer(config, workdir) as trainer, jax.set_mesh(trainer.mesh):
        trainer.prepare()
        groups = [[int(i) for row in trainer.training.plan.step(n) for i in row] for n in range(job["steps"])]
        dropped = trainer.training.examples.report.dropped
        worker.ready(laps=trainer.clock.laps, groups=groups, matmul_peak=peak_flops(job["dtype"]), dropped=dropped)
        batches = trainer.training.batches(trainer.mesh, 0, job["steps"])
        for _ in worker.orders():
            start = time.perf_counter()
            batch = next(batches)
            metrics, _ = trainer.take(batch)
            loss = float(metrics["loss"])
            seconds = time.perf_counter() - start
            counted = jax.default_backend() == "cpu" and not job["lora"]
            flops = computed_flops(trainer.partition.config, batch, job["reference"] == "live") if counted else None
            needed = None if job["lora"] else needed_flops(trainer.partition.config, batch)
            worker.tell({"seconds": seconds, "loss": loss, "flops": flops, "needed": needed})


if __name__ == "__main__":
    main()
