"""Defines the runs of the ablation: arms, sweeps, and the config of each."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.core.stages import Stage
from smallr.data.rows import GAPS

BASE, RAW, CRV, DPO, COGPO = "no SFT", "raw SFT", "CRV SFT", "CRV SFT + DPO", "CRV SFT + CogPO"
ARMS = {"base": BASE, "raw": RAW, "crv": CRV, "dpo": DPO, "cogpo": COGPO}
SWEEPS = ("beta", "small", "medium", "large", "mix", "critic")


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """Says how one stage trains.

    Attributes:
      epochs, steps: as `config.epochs` and `config.steps`.
      rate: peak of the learning rate.
      rows, row_length: of a batch.
    """

    epochs: int
    steps: int
    rate: float
    rows: int
    row_length: int


@dataclasses.dataclass(frozen=True)
class AblationPlan:
    """Says what the ablation compares.

    Attributes:
      model: that every run starts from.
      rows: fields of `cogpo.rows.Recipe` without `seed`.
      exam: fields of `cogpo.judge.Examination` without the data sets.
      sft, preference: the two stages.
      dtype: of the computation.
      betas: of CogPO, by gap.
      dpo_beta: of DPO.
      grid: values of the betas that are swept.
      mixes: shares of the three gaps that are swept.
      critics: rates of the critic's errors, or models as critics, that are swept.
    """

    model: str
    rows: Mapping[str, Any]
    exam: Mapping[str, Any]
    sft: TrainSettings
    preference: TrainSettings
    dtype: str
    betas: Mapping[str, float]
    dpo_beta: float
    grid: tuple[float, ...] = ()
    mixes: tuple[str, ...] = ()
    critics: tuple[str, ...] = ()

    def base_run(self) -> Stage:
        """Returns the model as it is."""
        rows = {key: value for key, value in self.rows.items() if key not in ("mix", "pairs", "critic")}
        settings = self._settings(BASE, 0, self.sft, rows)
        return Stage("base", {key: value for key, value in settings.items() if key != "train"})

    def sft_run(self, arm: str, seed: int, **rows: Any) -> Stage:
        """Makes the run of SFT on the teacher's rationales (`raw SFT`) or on those of CRV."""
        name = {RAW: "raw", CRV: "crv"}[arm]
        recipe = {key: value for key, value in {**self.rows, **rows}.items() if key not in ("mix", "pairs")}
        return Stage(f"{name}{_label(rows)}-s{seed}", self._settings(arm, seed, self.sft, recipe))

    def preference_run(self, arm: str, seed: int, beta: float | Mapping[str, float], **rows: Any) -> Stage:
        """Makes the run of DPO or CogPO behind SFT on CRV rationales."""
        start = self.sft_run(CRV, seed, **{key: value for key, value in rows.items() if key not in ("mix", "pairs")})
        betas = dict(beta) if isinstance(beta, Mapping) else beta
        name = "-".join(f"{value:g}" for value in (betas.values() if isinstance(betas, dict) else [betas]))
        kind = {DPO: "dpo", COGPO: "cogpo"}[arm]
        settings = self._settings(arm, seed, self.preference, {**self.rows, **rows}) | {"betas": betas}
        return Stage(f"{kind}-{name}{_label(rows)}-s{seed}", settings, needs=(start,))

    def arms(self, names: Iterable[str], seeds: int) -> list[Stage]:
        """Returns the runs of the arms, seed by seed, and those that they need."""
        runs: list[Stage] = []
        for seed in range(seeds):
            made = {
                "base": self.base_run,
                "raw": lambda seed=seed: self.sft_run(RAW, seed),
                "crv": lambda seed=seed: self.sft_run(CRV, seed),
                "dpo": lambda seed=seed: self.preference_run(DPO, seed, self.dpo_beta),
                "cogpo": lambda seed=seed: self.preference_run(COGPO, seed, self.betas),
            }
            runs += [made[name]() for name in names]
        return with_needs(runs)

    def sweep(self, name: str, seeds: int) -> list[Stage]:
        """Returns the runs of one sweep, those of the arms among them included."""
        runs: list[Stage] = []
        for seed in range(seeds):
            if name == "beta":
                runs += [self.preference_run(DPO, seed, beta) for beta in self.grid]
            elif name in GAPS:
                runs += [self.preference_run(COGPO, seed, {**self.betas, name: beta}) for beta in self.grid]
            elif name == "mix":
                runs += [self.preference_run(COGPO, seed, self.betas, mix=mix) for mix in self.mixes]
            elif name == "critic":
                runs += [self.preference_run(COGPO, seed, self.betas, critic=critic) for critic in self.critics]
            else:
                raise UserError(f"sweep {name!r} must be one of: {', '.join(SWEEPS)}")
        return with_needs(runs)

    def _settings(self, arm: str, seed: int, stage: TrainSettings, rows: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "arm": arm,
            "seed": seed,
            "model": self.model,
            "dtype": self.dtype,
            "rows": dict(rows),
            "train": dataclasses.asdict(stage),
            "exam": dict(self.exam),
        }


def _label(rows: Mapping[str, Any]) -> str:
    return "".join(f"-{key}{re.sub(r'[^0-9A-Za-z.]+', '_', str(value))}" for key, value in rows.items())


def with_needs(runs: Iterable[Stage]) -> list[Stage]:
    """Returns the runs, each behind those that it needs, each once."""
    found: dict[str, Stage] = {}
    for run in runs:
        for each in (*run.needs, run):
            found.setdefault(each.digest, each)
    return list(found.values())


def config_of(run: Stage, rows: Path, model: str) -> ConfigDict:
    """Returns the training config: that of `configs/`, with the run's data and sizes.

    Args:
      run: of a `AblationPlan`.
      rows: folder of its data sets.
      model: that it starts from.
    """
    settings = run.settings
    if settings["arm"] in (RAW, CRV):
        config = importlib.import_module("configs.crv.sft").get_config()
        data = rows / ("teacher" if settings["arm"] == RAW else "fitted")
    else:
        betas, data = settings["betas"], rows / "pairs"
        per_gap = isinstance(betas, Mapping)
        config = importlib.import_module("configs.cogpo" if per_gap else "configs.dpo").get_config()
        config.objective.beta = ConfigDict(betas) if per_gap else betas
    stage = settings["train"]
    config.seed, config.model, config.compute.dtype = settings["seed"], model, settings["dtype"]
    config.compute.remat = "none" if settings["dtype"] == "float32" else "dots"
    config.data.train, config.data.train_split = str(data), "train"
    config.data.eval = ""
    config.batch.rows, config.batch.row_length = stage["rows"], stage["row_length"]
    config.optimizer.learning_rate = stage["rate"]
    config.epochs, config.steps = stage["epochs"], stage["steps"]
    config.batch.packing, config.log_every = True, 10
    return config
