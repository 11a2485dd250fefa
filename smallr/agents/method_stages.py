"""Adds training and generation to the stages of a job.

stages = MethodStages(out, seed=config.seed)
tuned = stages.train("tuning", config.tuning, rows, start=config.model)
drafts = stages.generate("drafts_0", tuned, prompts, config.sampling, round=0)
pairs = stages.make("pairs_0", prefer_useful, tuned, drafts)
stages.run()
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from smallr.agents.agent import encodable, is_at_fault, sampling_params
from smallr.core.journal import Journal
from smallr.core.stages import Stage, Stages, Stopped
from smallr.language.opening import open_language_model
from smallr.sampling.requests import Request, Result, SamplingParams

Rows = Sequence[Mapping[str, Any]]


class MethodStages(Stages):
    """Offers stages with two more kinds: training and generation.

    Args:
      out: folder of the job.
      seed: of the run, on which samples depend.
      compute: of local models that write, arguments of `open_language_model`: dtype, decode_slots, max_length.
    """

    def __init__(self, out: Path, *, seed: int = 0, compute: Mapping[str, Any] | None = None, writes: bool = True):
        super().__init__(out, writes=writes)
        self._seed, self._compute = seed, dict(compute or {})

    def train(
        self, name: str, config: ConfigDict, rows: Rows | Stage | None = None, *, start: str | Path | Stage
    ) -> Stage:
        """Names a stage that trains a model; its value is its folder, which is a model for every command.

        Args:
          name: of the stage.
          config: of `smallr.config.base`.
          rows: under our column names; by default those that the config names.
          start: the model to start from.
        """
        return self.do(name, train_in, config, rows, start)

    def generate(
        self,
        name: str,
        model: str | Path | Stage,
        prompts: Sequence[str] | Stage,
        sampling: Mapping[str, Any] | None = None,
        *,
        round: int = 0,
    ) -> Stage:
        """Names a stage in which a model completes prompts.

        A sample depends on the run's seed, the round, the prompt and the sample's number alone, so another round draws
        anew and the same one is repeatable.

        Args:
          name: of the stage.
          model: any that a command takes.
          prompts: users' messages.
          sampling: fields of `SamplingParams`, without `seed`.
          round: of the method.

        Returns:
          A stage whose value is a row a prompt: `prompt`, `completions`, `finish_reasons`, and `error`, which is empty
          unless the prompt could not be answered.
        """
        options = {"seed": self._seed, "round": round, "sampling": dict(sampling or {}), "compute": self._compute}
        return self.do(name, generate_in, model, prompts, options)


def train_in(folder: Path, config: ConfigDict, rows: Rows | None, start: str | Path) -> Path:
    """Trains in a folder, or goes on there.

    Raises:
      Stopped: a signal ended the training.
    """
    from smallr.training.trainer import Trainer  # generation from a server needs no JAX

    config = config.copy_and_resolve_references()
    config.model = str(start)
    with Trainer(config, folder) as trainer:
        if rows is not None:
            trainer.load_data(rows)
        report = trainer.fit()
    if not report["finished"]:
        raise Stopped(f"stopped in {folder}; the same command goes on from there")
    return folder


def generate_in(folder: Path, model: str | Path, prompts: Sequence[str], options: Mapping[str, Any]) -> list[dict]:
    """Completes prompts, each once, whatever interrupts it; replies are kept in the folder as they come.

    Raises:
      Stopped: some prompts got no reply for no fault of their own.
    """
    journal = Journal(folder / "journal.jsonl", ("completions", "error"))
    params = sampling_params("sampling", **_tuples(options["sampling"]))
    requests = {_key(number, prompt): request_of(prompt, params, options) for number, prompt in enumerate(prompts)}
    todo = [key for key in requests if key not in journal]
    unanswered: list[str] = []
    with tqdm(total=len(requests), initial=len(requests) - len(todo), desc="completions", disable=None) as bar:

        def received(index: int, result: Result) -> None:
            bar.update()
            if result.error is not None and not is_at_fault(result.error):
                unanswered.append(result.error)
            else:
                journal.add(todo[index], _entry(result))

        if todo:
            with contextlib.closing(open_language_model(str(model), **options["compute"])) as opened:
                opened.complete_sync([requests[key] for key in todo], progress=received)
    if unanswered:
        raise Stopped(f"{len(unanswered)} prompts got no reply ({unanswered[0]}); the same command asks them again")
    return [{"prompt": prompt, **journal[_key(number, prompt)]} for number, prompt in enumerate(prompts)]


def request_of(prompt: str, params: SamplingParams, options: Mapping[str, Any]) -> Request:
    """Returns a user's message whose samples depend on the run's seed, the round, the prompt and their numbers alone."""
    stream = f"{options['seed']}:{options['round']}:{prompt}".encode("utf-8", "surrogatepass")
    seed = int.from_bytes(hashlib.sha256(stream).digest()[:4], "big") >> 1
    return Request(
        messages=({"role": "user", "content": encodable(prompt)},),
        params=SamplingParams(**{**vars(params), "seed": seed}),
    )


def _entry(result: Result) -> dict[str, Any]:
    return {
        "completions": [encodable(sample.text) for sample in result.samples],
        "finish_reasons": [sample.finish_reason for sample in result.samples],
        "error": result.error or "",
    }


def _key(number: int, prompt: str) -> str:
    return f"{number}:{hashlib.sha256(prompt.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
