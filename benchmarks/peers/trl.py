"""Runs TRL's worker: `DPOTrainer.train`, held at the start of each step until the benchmark asks for it."""

from __future__ import annotations

import tempfile
import time
from typing import Any

from benchmarks.peers.protocol import Worker, read_pairs


def trainer(worker: Worker, folder: str) -> Any:
    """Returns a `DPOTrainer` on the pairs of the job, with the job's groups as batches."""
    import datasets
    import torch
    import transformers
    import trl

    job = worker.job
    pairs = datasets.Dataset.from_list(read_pairs(job)).select_columns(["prompt", "chosen", "rejected"])
    arguments = trl.DPOConfig(
        output_dir=folder,
        use_cpu=not torch.cuda.is_available(),
        bf16=job["dtype"] == "bfloat16",
        gradient_checkpointing=job["checkpointing"],
        precompute_ref_log_probs=job["reference"] == "cached",
        per_device_train_batch_size=max(map(len, job["groups"])),
        max_steps=job["steps"],
        max_length=None,
        beta=0.1,
        learning_rate=job["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    adapters = None
    if job["lora"]:
        import peft

        adapters = peft.LoraConfig(r=job["lora"], lora_alpha=2 * job["lora"], target_modules="all-linear")

    class Grouped(trl.DPOTrainer):
        def get_train_dataloader(self) -> Any:
            loader = torch.utils.data.DataLoader(
                self.train_dataset, batch_sampler=job["groups"], collate_fn=self.data_collator
            )
            return self.accelerator.prepare(loader)

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            self.exact_loss = float(loss)  # the log rounds it
            return loss

    tokenizer = transformers.AutoTokenizer.from_pretrained(job["model"])
    return Grouped(model=model, args=arguments, train_dataset=pairs, processing_class=tokenizer, peft_config=adapters)


def main() -> None:
    """Trains; each step begins when it is asked for."""
    worker = Worker()
    import transformers

    from smallr.doctor.torch_step import matmul_peak

    orders = worker.orders()

    class Turns(transformers.TrainerCallback):
        start = 0.0
        trainer: Any = None

        def wait(self, control: Any) -> None:
            if next(orders, None) is None:
                control.should_training_stop = True
            self.start = time.perf_counter()

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            worker.ready(matmul_peak=matmul_peak(worker.job["dtype"]))
            self.wait(control)

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
        ) -> None:
            if logs and "loss" in logs:
                worker.tell({"seconds": time.perf_counter() - self.start, "loss": self.trainer.exact_loss})
                self.wait(control)

    with tempfile.TemporaryDirectory() as folder:
        run = trainer(worker, folder)
        turns = Turns()
        turns.trainer = run
        run.add_callback(turns)
        run.train()


if __name__ == "__main__":
    main()
