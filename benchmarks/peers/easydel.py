"""Runs EasyDeL's worker: `DPOTrainer.train`, held where it fetches the next batch until the benchmark asks for a step.

Cached references are what the trainer's own `compute_reference_log_probs` returns for each batch before the first step.
EasyDeL 0.3.0 writes compiled programs to its own cache, which this worker points at a new folder, so that every start
compiles.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.peers.padding import batches
from benchmarks.peers.protocol import Worker

NAMES = {"ids": "input_ids", "mask": "attention_mask"}


def load(job: dict[str, Any]) -> Any:
    """Loads the model of the job, with float32 weights and compute in the job's dtype."""
    import easydel
    import jax.numpy as jnp

    dtype = jnp.dtype(job["dtype"])
    # left alone, attention is computed in bfloat16 whatever the dtype of the model
    options: dict[str, Any] = {"attn_dtype": dtype}
    if job["checkpointing"]:
        options["gradient_checkpointing"] = easydel.EasyDeLGradientCheckPointers.NOTHING_SAVEABLE
    return easydel.AutoEasyDeLModelForCausalLM.from_pretrained(
        job["model"],
        dtype=dtype,
        param_dtype=jnp.float32,
        from_torch=True,  # the layout of a Hugging Face folder
        config_kwargs=options,
        verbose=False,
    )


def held_trainer(worker: Worker, folder: str) -> Any:
    """Returns a `DPOTrainer` whose batches are those of the job, each told to the benchmark when the next one is fetched."""
    import datasets
    import easydel
    import transformers
    from easydel.trainers.trainer_protocol import TrainerConfigureDataloaderOutput

    job = worker.job
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["model"])
    steps = [
        {f"{side}_{NAMES[kind]}": array for side, both in batch.items() for kind, array in both.items()}
        for batch in batches(job, tokenizer)
    ]
    prompt, completion = (steps[0][f"{side}_input_ids"].shape[1] for side in ("prompt", "chosen"))

    class Held(easydel.DPOTrainer):
        def configure_dataloaders(self) -> Any:
            self.steps = steps
            return TrainerConfigureDataloaderOutput(dataloader_train=self, max_training_steps=job["steps"] + 1)

        def __iter__(self) -> Iterator[dict[str, Any]]:
            for n in worker.orders():
                start = time.perf_counter()
                yield self.steps[n]
                worker.tell({"seconds": time.perf_counter() - start, "loss": self.loss})
            sys.exit()  # without a checkpoint at the end

        def on_step_end(self, state: Any, metrics: Any, step: int) -> tuple[Any, Any]:
            self.loss = float(metrics.loss)
            return super().on_step_end(state, metrics, step)

    arguments = easydel.DPOConfig(
        beta=0.1,
        max_prompt_length=prompt,
        max_completion_length=completion,
        max_length=prompt + completion,
        total_batch_size=max(map(len, job["groups"])),
        num_train_epochs=1,
        max_training_steps=job["steps"] + 1,
        learning_rate=job["learning_rate"],
        weight_decay=0.0,
        clip_grad=1.0,
        extra_optimizer_kwargs={"b1": 0.9, "b2": 0.999, "eps": 1e-8},
        save_directory=folder,
        resume_if_possible=False,
        do_last_save=False,
        save_steps=None,
        use_wandb=False,
        report_metrics=False,
    )
    rows = datasets.Dataset.from_list([{name: array[0] for name, array in steps[0].items()}])
    return Held(arguments, load(job), processing_class=tokenizer, train_dataset=rows)


def score_references(trainer: Any) -> None:
    """Adds the reference's log-probs to every batch.

    EasyDeL 0.3.0 declares the output of its compiled forward pass a tuple, where it is a dict, and so fails: the same
    pass is compiled here without that declaration.
    """
    import jax

    trainer.concatenated_forward = jax.jit(trainer._train_shared_fn_static_args[1])
    for batch in trainer.steps:
        with trainer.mesh:
            chosen, rejected = trainer.compute_reference_log_probs(batch)
        batch |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}


def compile_step(trainer: Any, batch: dict[str, Any]) -> None:
    """Compiles the program of a step for the shapes of the batch and does not run it: `train` finds it compiled."""
    with trainer.mesh:
        batch, _ = trainer._preprocess_batch_input(trainer.model_state, batch, is_train=True)
        arguments = (*trainer._train_shared_fn_extra_args, *trainer._train_shared_fn_static_args)
        trainer.sharded_training_step_function.lower(trainer.model_state, batch, *arguments).compile()


def main() -> None:
    """Trains; each step begins when it is asked for."""
    worker = Worker()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["COMPILE_FUNC_DIR"] = folder
        trainer = held_trainer(worker, folder)
        if worker.job["reference"] == "cached":
            score_references(trainer)
        for batch in {len(batch["prompt_input_ids"]): batch for batch in trainer.steps}.values():
            compile_step(trainer, batch)
        from smallr.training.flops import peak_flops

        worker.ready(matmul_peak=peak_flops(worker.job["dtype"]))
        trainer.train()


if __name__ == "__main__":
    main()
