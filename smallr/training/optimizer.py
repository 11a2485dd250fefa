"""AdamW with clipping and a schedule, from the config."""

from __future__ import annotations

from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from smallr.core.errors import UserError

NOT_DECAYED = ("scale", "bias")  # how the names of norm weights and biases end


def make_schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """Learning rate of each step: linear warm-up from 0, then cosine, linear or constant.

    Args:
      config: `config.optimizer`.
      steps: steps of the whole run.

    Raises:
      UserError: an unknown schedule, or a warm-up that does not fit the run.
    """
    peak, final = config.learning_rate, config.learning_rate * config.final_fraction
    warmup = round(config.warmup * steps) if config.warmup < 1 else int(config.warmup)
    if not 0 <= warmup <= steps:
        raise UserError(f"config.optimizer.warmup: {warmup} warm-up steps do not fit a run of {steps} steps")
    rest = max(steps - warmup, 1)
    if config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, rest, alpha=config.final_fraction)
    elif config.schedule == "linear":
        decay = optax.linear_schedule(peak, final, rest)
    elif config.schedule == "constant":
        decay = optax.constant_schedule(peak)
    else:
        raise UserError(f"config.optimizer.schedule: {config.schedule!r} is none of cosine, linear, constant")
    if warmup == 0:
        return decay
    # The first step already learns: it uses peak / warmup rather than 0.
    ramp = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([ramp, decay], [warmup])


def decay_mask(params: Any) -> Any:
    """True for parameters that weight decay applies to: all but norm scales and biases, by name."""

    def decayed(path: tuple, _: Any) -> bool:
        names = [str(getattr(entry, "key", "")) for entry in path]
        return not any(name.endswith(NOT_DECAYED) for name in names)

    return jax.tree_util.tree_map_with_path(decayed, params)


def make_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW; `config` is `config.optimizer`."""
    adamw = optax.adamw(
        schedule, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay, mask=decay_mask
    )
    if config.clip_norm:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)
    return adamw
