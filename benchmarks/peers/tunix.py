"""Runs Tunix's worker: `DPOTrainer.train`, held where it fetches the next batch until the benchmark asks for a step.

What Tunix 0.1.7 cannot do decides what is compared. The reference is always scored live. Its models compute in the
dtype of their weights, so in bfloat16 there are no float32 master weights. Its Llama ignores the `rope_theta` of a
model (the default of `apply_rope` stands in for it), which is corrected here: else it would train another model.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

from benchmarks.peers.padding import batches
from benchmarks.peers.protocol import Worker


def load(job: dict[str, Any]) -> Any:
    """Loads the model of the job as Tunix's `Llama3`.

    Raises:
      ValueError: the model is no Llama, or scales its rotary frequencies, which Tunix's Llama does not.
    """
    import jax.numpy as jnp
    import transformers
    from tunix.models.llama3 import model as llama
    from tunix.models.llama3 import params

    config = transformers.AutoConfig.from_pretrained(job["model"])
    rope = getattr(config, "rope_parameters", None) or {"rope_theta": config.rope_theta}
    if config.model_type != "llama" or rope.get("rope_type", "default") != "default":
        raise ValueError(f"Tunix's Llama computes no {config.model_type} with {rope}: take a model of the Llama family")
    if not isinstance(llama.apply_rope, functools.partial):
        llama.apply_rope = functools.partial(llama.apply_rope, rope_theta=rope["rope_theta"])
    shape = llama.ModelConfig(
        num_layers=config.num_hidden_layers,
        vocab_size=config.vocab_size,
        embed_dim=config.hidden_size,
        hidden_dim=config.intermediate_size,
        num_heads=config.num_attention_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        rope_theta=rope["rope_theta"],
        norm_eps=config.rms_norm_eps,
        weight_tying=config.tie_word_embeddings,
        remat_config=llama.RematConfig.DECODER if job["checkpointing"] else llama.RematConfig.NONE,
    )
    return params.create_model_from_safe_tensors(job["model"], shape, dtype=jnp.dtype(job["dtype"]))


def trainer_of(job: dict[str, Any]) -> Any:
    """Returns a `DPOTrainer` with the optimizer of the job."""
    import jax
    import optax
    from flax import nnx
    from tunix.sft.dpo import dpo_trainer

    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(job["learning_rate"], b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)
    )
    config = dpo_trainer.DPOTrainingConfig(beta=0.1, eval_every_n_steps=job["steps"] + 1)
    trainer = dpo_trainer.DPOTrainer(load(job), load(job), optimizer, config)
    # Placed like the outputs of a step, else the second step would be compiled once more.
    nnx.update(trainer.optimizer, jax.device_put(nnx.state(trainer.optimizer), jax.devices()[0]))
    return trainer


class OnlyCompiled(Exception):
    """Says that a program was compiled and is not to run."""


def compile_step(trainer: Any, batch: Any) -> None:
    """Compiles both programs of a step for the shapes of the batch, and runs neither: `train` finds them compiled."""
    import jax
    import numpy as np
    from tunix.sft.dpo import dpo_trainer

    score = dpo_trainer.compute_logps

    def compile_score(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        score.lower(*args, **kwargs).compile()
        none = jax.device_put(np.zeros(len(batch.prompt_ids), np.float32), jax.devices()[0])
        return none, none

    with mock.patch.object(dpo_trainer, "compute_logps", compile_score):
        example = trainer._prepare_inputs(batch)
    step = trainer.jit_train_and_eval_step(cache_nnx_graph=True)[0]
    jitted = step.func.jitted_fn

    def compile_it(*args: Any, **kwargs: Any) -> None:
        jitted.lower(*args, **kwargs).compile()
        raise OnlyCompiled

    # the arguments that `cached_partial` holds back are known only inside of the call
    with mock.patch.object(step.func.__wrapped__, "jitted_fn", compile_it), contextlib.suppress(OnlyCompiled):
        step(example)


def main() -> None:
    """Trains; each step begins when it is asked for."""
    worker = Worker()
    import transformers
    from tunix.sft.dpo import dpo_trainer

    from smallr.training.flops import peak_flops

    job = worker.job
    if job["reference"] != "live":
        raise ValueError("Tunix scores the reference live: take the cases with a live reference")
    trainer = trainer_of(job)
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["model"])
    steps = [
        dpo_trainer.TrainingInput(
            **{f"{side}_{kind}": array for side, both in batch.items() for kind, array in both.items()}
        )
        for batch in batches(job, tokenizer)
    ]
    for batch in {len(batch.prompt_ids): batch for batch in steps}.values():
        compile_step(trainer, batch)
    worker.ready(matmul_peak=peak_flops(job["dtype"]))

    def held() -> Iterator[Any]:
        for n in worker.orders():
            start = time.perf_counter()
            yield steps[n]
            loss = float(trainer._prev_buffered_train_metrics.losses[-1])
            worker.tell({"seconds": time.perf_counter() - start, "loss": loss})

    trainer.train(held())


if __name__ == "__main__":
    main()
