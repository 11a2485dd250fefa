"""Has the runs of a method write, one after the other, in one engine that keeps its compiled programs.

Runs with adapters share their base: it is in memory once, and the adapters of the next run take the place of those of the
one before. Prompts are answered in blocks, each from an empty cache, so that a block that a kill has cut off is written
again as it was.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from smallr.agents.agent import encodable, sampling_params
from smallr.agents.method_stages import request_of
from smallr.core.journal import Journal
from smallr.core.sharding import make_mesh
from smallr.language.loading import load_trained
from smallr.models.decoder import Decoder
from smallr.models.lora import LoRA, attach, fill, free_layers, targets
from smallr.models.projection import adapter_name
from smallr.sampling.engine import Engine
from smallr.sampling.prompts import end_ids
from smallr.sampling.requests import Result
from smallr.training.opening import saved_pair
from smallr.training.progress import log
from smallr.training.saved import find_run

_BLOCK = 256  # prompts that are answered together, and kept as soon as they are
_MEASURED = 24  # tokens that are written to a prompt to measure the speed

Pairs = Mapping[str, tuple[np.ndarray, np.ndarray]]  # a and b of each adapter


class Writer:
    """Completes prompts with runs.

    Args:
      dtype: of the computation.
      decode_slots: completions written at once.
      lora: adapters that runs may have; None: they have none.

    Attributes:
      digest: of what the texts depend on beside the run and the prompt, for stages.
    """

    def __init__(self, *, dtype: str, decode_slots: int, lora: LoRA | None = None):
        self._dtype, self._decode_slots, self._lora = dtype, decode_slots, lora
        self.digest = f"{dtype} {lora}"
        self._mesh = make_mesh(1, 1, -1)
        self._engine: Engine | None = None
        self._decoder: Decoder | None = None
        self._base = ""
        self._adapters: dict[str, Pairs] = {}

    def complete(
        self, folder: Path, model: Path, prompts: Sequence[str], options: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Completes prompts, each once, whatever interrupts it; a block's completions are kept in the folder.

        Args:
          folder: of the stage.
          model: a run.
          prompts: users' messages.
          options: `seed`, `round` and `sampling`, on which samples depend.

        Returns:
          `text`, `reason` (why it ended: stop | length), `error` and `tokens` (written) of each.
        """
        journal = Journal(folder / "journal.jsonl", ("completions",))
        params = sampling_params("config.generation", **options["sampling"])
        tokens, start = 0, time.perf_counter()
        for first in range(0, len(prompts), _BLOCK):
            if str(first) not in journal:
                self._take(model)
                requests = [request_of(prompt, params, options) for prompt in prompts[first : first + _BLOCK]]
                results = self._engine.generate(requests)
                tokens += sum(result.usage.completion_tokens for result in results)
                journal.add(str(first), {"completions": [_completion(result) for result in results]})
        if tokens:
            seconds = time.perf_counter() - start
            log(f"{folder.name}: wrote {tokens:,} tokens in {seconds:.1f} s, {tokens / seconds:,.0f} tokens/s")
        return [each for first in range(0, len(prompts), _BLOCK) for each in journal[str(first)]["completions"]]

    def pace(self, model: str, prompts: Sequence[str]) -> dict[str, float]:
        """Measures the seconds of loading (`start`), of a token of a `prompt`, and of a `token` that is written."""

        def seconds(tokens: int) -> tuple[float, int, int]:
            params = sampling_params("config.generation", max_tokens=tokens, temperature=0.0)
            requests = [request_of(prompt, params, {"seed": 0, "round": 0}) for prompt in prompts[: self._decode_slots]]
            self._engine.forget()
            start = time.perf_counter()
            usage = [result.usage for result in self._engine.generate(requests)]
            passed = time.perf_counter() - start
            return passed, sum(each.prompt_tokens for each in usage), sum(each.completion_tokens for each in usage)

        start = time.perf_counter()
        self._take(Path(model))
        loaded = time.perf_counter() - start
        seconds(_MEASURED)  # compiles
        (short, read, few), (whole, _, many) = seconds(1), seconds(_MEASURED)
        token = max(whole - short, 1e-6) / max(many - few, 1)  # never 0, whatever else the machine does
        return {"start": loaded, "prompt": max(short - few * token, 0.0) / max(read, 1), "token": token}

    def close(self) -> None:
        """Frees the models' memory; the next completion loads again what it needs."""
        self._engine = self._decoder = None
        self._base, self._adapters = "", {}

    @property
    def num_bytes(self) -> dict[str, int]:
        """Returns the bytes of the base in the engine, and of the adapters of each run that are kept beside it."""
        kept = {name: sum(a.nbytes + b.nbytes for a, b in pairs.values()) for name, pairs in self._adapters.items()}
        return {"base": self._engine.weight_bytes[0], **kept}

    def _take(self, model: Path) -> None:
        """Puts a run's weights into the engine, and empties its cache."""
        run = find_run(model)
        adapted = self._lora is not None and run is not None and "lora" in run.config
        base = run.config["model"] if adapted else str(model)
        if base != self._base:
            self._load(base)
        if self._lora is None:
            self._engine.forget()
            return
        if str(model) not in self._adapters:
            paths = targets(self._decoder.config, self._lora)
            self._adapters[str(model)] = (
                {path: saved_pair(run, path) for path in paths} if adapted else self._switched_off()
            )
        fill(self._decoder, self._adapters[str(model)])
        self._engine.update_adapters(self._decoder)

    def _load(self, base: str) -> None:
        """Loads a base, with adapters that are switched off if runs may have some."""
        self._adapters = {}
        with jax.set_mesh(self._mesh):
            source, decoder = load_trained(base, self._mesh, dtype=self._dtype)
            if self._lora is not None:
                attach(decoder, self._lora, 0, self._mesh)
            if self._engine is None:
                ends = end_ids(source)
                self._engine = Engine(
                    decoder, source.tokenizer(), self._mesh, decode_slots=self._decode_slots, end_ids=ends
                )
            else:
                self._engine.update(decoder)
        if self._lora is not None:
            free_layers(decoder)  # the engine has packed them
        self._base, self._decoder = base, decoder if self._lora is not None else None

    def _switched_off(self) -> Pairs:
        """Returns adapters that add nothing: b is zero."""
        flat = dict(nnx.to_flat_state(nnx.state(self._decoder)))
        found = {}
        for path in targets(self._decoder.config, self._lora):
            a, b = (flat[(*adapter_name(path).split("."), name)].get_value() for name in ("a", "b"))
            found[path] = np.asarray(a), np.zeros(b.shape, np.float32)
        return found


def _completion(result: Result) -> dict[str, Any]:
    if result.error is not None:
        return {"text": "", "reason": "", "error": result.error, "tokens": 0}
    (sample,) = result.samples
    text, tokens = encodable(sample.text).strip(), result.usage.completion_tokens
    return {"text": text, "reason": sample.finish_reason, "error": "", "tokens": tokens}
