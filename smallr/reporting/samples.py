"""Lets the model of a run write, as it was loaded and as it is now, on prompts of its held-out rows."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from smallr.api.model import Model, load
from smallr.core.errors import UserError
from smallr.core.files import read_json, write_json
from smallr.reporting.page import SAMPLES
from smallr.sampling.requests import Request, SamplingParams
from smallr.training.objective import make_objective
from smallr.training.splits import Split, load_split


def write_samples(workdir: Path, count: int, max_tokens: int = 256) -> None:
    """Writes greedy completions of both models for the first held-out prompts, or training prompts without such rows.

    Raises:
      UserError: the run's model or rows are not there any more, or its rows have no prompts.
    """
    config = ConfigDict(read_json(workdir / "config.json")["config"])
    model = load(config.model, tokenizer=config.tokenizer)
    prompts = _prompts(_split(config, model), count)
    before = _write(model, prompts, max_tokens)
    del model  # two at once may not fit
    model = load(workdir)
    samples = [
        {"prompt": model.tokenizer.decode(prompt), "before": first, "after": second}
        for prompt, first, second in zip(prompts, before, _write(model, prompts, max_tokens), strict=True)
    ]
    write_json(workdir / SAMPLES, {"samples": samples})


def _split(config: ConfigDict, model: Model) -> Split:
    given = config, model.tokenizer, make_objective(config)
    return load_split(*given, "eval") or load_split(*given, "train")


def _prompts(split: Split, count: int) -> list[tuple[int, ...]]:
    prompts = dict.fromkeys(tuple(split.examples[i].prefix.tolist()) for i in range(len(split.examples)))
    found = [prompt for prompt in prompts if prompt][:count]
    if not found:
        raise UserError("smallr report --samples: the rows of this run have no prompts")
    return found


def _write(model: Model, prompts: list[tuple[int, ...]], max_tokens: int) -> list[str]:
    requests = [Request(prompt=prompt, params=SamplingParams(max_tokens=max_tokens)) for prompt in prompts]
    results = model.engine.generate(requests, progress=False)
    return [result.samples[0].text if not result.error else f"(not written: {result.error})" for result in results]
