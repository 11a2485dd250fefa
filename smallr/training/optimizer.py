"""Makes the optimizer, with clipping and a schedule, from the config, also for a run that goes on beyond its planned end."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int
from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.training.matrices import Views, on_matrices
from smallr.training.update_rules import NAMES, ON_MATRICES, Rule, adamw

EXTENSIONS = ("rewarm", "constant", "as_new")  # what `config.optimizer.on_extend` may be


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters with a learning rate of their own.

    Attributes:
      name: as in `config.optimizer.groups`.
      pattern: a regular expression that is found in the dotted paths of the group's parameters.
      scale: the group's learning rate, as a multiple of the schedule's.
      weight_decay: of the group.
    """

    name: str
    pattern: str
    scale: float
    weight_decay: float


def make_groups(config: ConfigDict) -> tuple[Group, ...]:
    """Reads `config.optimizer.groups`: a name -> `learning_rate`, and optionally `weight_decay` and `parameters`.

    `parameters` is a regular expression on dotted paths, as `config.freeze` is; without it a group has the parameters
    whose paths begin with its name. A parameter is in the first group that has it.

    Raises:
      UserError: a field that does not exist, or a number out of its bounds.
    """
    groups = []
    for name, fields in config.groups.items():
        where = f"config.optimizer.groups.{name}"
        known = ("learning_rate", "weight_decay", "parameters")
        if unknown := sorted(set(fields) - set(known)):
            raise UserError(f"{where}.{unknown[0]}: the field must be one of: {', '.join(known)}")
        rate, decay = fields.get("learning_rate", config.learning_rate), fields.get("weight_decay", config.weight_decay)
        if not (rate >= 0 and decay >= 0):
            raise UserError(f"{where}: learning_rate={rate} and weight_decay={decay} must not be negative")
        if not config.learning_rate > 0:
            raise UserError(
                f"{where}: config.optimizer.learning_rate must be above 0; to train nothing else use config.freeze"
            )
        pattern = fields.get("parameters", "") or rf"^{re.escape(name)}\."
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"{where}.parameters: {pattern!r} is no regular expression ({error})") from error
        groups.append(Group(name, pattern, rate / config.learning_rate, decay))
    return tuple(groups)


def check_groups(config: ConfigDict, params: Any) -> None:
    """Raises UserError where a group has no parameter among those that are trained."""
    found = set(jax.tree.leaves(_labels(make_groups(config), params)))
    for group in make_groups(config):
        if group.name not in found:
            raise UserError(
                f"config.optimizer.groups.{group.name}: no trained parameter is in it; its pattern is {group.pattern!r}"
            )


def _labels(groups: Sequence[Group], params: Any) -> Any:
    """Returns the tree of parameters with the name of each one's group, empty for those that are in none."""

    def label(path: tuple, _: Any) -> str:
        dotted = ".".join(str(entry.key) for entry in path if hasattr(entry, "key"))
        return next((group.name for group in groups if re.search(group.pattern, dotted)), "")

    return jax.tree_util.tree_map_with_path(label, params)


@dataclasses.dataclass(frozen=True)
class Horizon:
    """Holds a number of steps that a run was planned for.

    Attributes:
      start: the step at which the run was given this horizon; 0 for the first.
      steps: steps of the whole run.
      how: one of EXTENSIONS; of a horizon that follows another one, how the schedule goes on.
    """

    start: int
    steps: int
    how: str = "as_new"


def make_schedule(config: ConfigDict, horizons: Sequence[Horizon]) -> optax.Schedule:
    """Builds the learning rate of each step: linear warm-up from 0, then cosine, linear or constant.

    Args:
      config: `config.optimizer`.
      horizons: that the run was planned for, one after the other; mostly there is one.

    Raises:
      UserError: an unknown schedule, or a warm-up that does not fit the run.
    """
    schedule = _planned(config, horizons[0].steps)
    for horizon in horizons[1:]:
        if horizon.how == "as_new":
            schedule = _planned(config, horizon.steps)
        elif horizon.how == "rewarm":
            schedule = optax.join_schedules(
                [schedule, _planned(config, horizon.steps - horizon.start)], [horizon.start]
            )
        else:
            last = float(schedule(horizon.start - 1))
            schedule = optax.join_schedules([schedule, optax.constant_schedule(last)], [horizon.start])
    return schedule


def _planned(config: ConfigDict, steps: int) -> optax.Schedule:
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
        raise UserError(f"config.optimizer.schedule: {config.schedule!r} must be one of: cosine, linear, constant")
    if warmup == 0:
        return decay
    # The first step already learns: it uses peak / warmup rather than 0.
    ramp = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([ramp, decay], [warmup])


def extend(config: ConfigDict, horizons: Sequence[Horizon], steps: int, done: int) -> tuple[Horizon, ...]:
    """Returns the horizons of a run that now has `steps` steps, of which `done` are done.

    Args:
      config: `config.optimizer`, whose `on_extend` decides how the schedule goes on where it would change.
      horizons: of the run so far.
      steps: that it now has.
      done: steps of its newest checkpoint.

    Raises:
      UserError: the schedule would change, and nobody has said how.
    """
    if config.on_extend and config.on_extend not in EXTENSIONS:
        raise UserError(f"config.optimizer.on_extend: {config.on_extend!r} must be one of: {', '.join(EXTENSIONS)}")
    if not horizons or not done:
        return (Horizon(0, steps),)
    if horizons[-1].steps == steps:
        return tuple(horizons)
    before, anew = make_schedule(config, horizons), _planned(config, steps)
    left = np.arange(done, max(steps, done + 1))
    if len(horizons) == 1 and np.array_equal(_rates(before, left), _rates(anew, left)):
        return (Horizon(0, steps),)
    if not config.on_extend:
        rates = f"{float(before(done)):.3g} to {float(anew(done)):.3g}"
        raise UserError(
            f"the run was planned for {horizons[-1].steps} steps, has done {done} and would now have {steps}. Under a schedule "
            f"for {steps} steps the learning rate would jump from {rates}. Decide with "
            "--config.optimizer.on_extend=rewarm (warm up again and decay over the added steps), constant (stay at the "
            "last rate) or as_new (the rates of a run planned for all steps from its beginning)"
        )
    if config.on_extend == "constant" and not float(before(max(done - 1, 0))):
        raise UserError("config.optimizer.on_extend=constant: the last learning rate is 0; use rewarm")
    return (*horizons, Horizon(done, steps, config.on_extend))


def _rates(schedule: optax.Schedule, steps: np.ndarray) -> np.ndarray:
    return np.asarray(jax.vmap(schedule)(jnp.asarray(steps)))


def steps_of_schedule(opt_state: Any, default: Int[Array, ""]) -> Int[Array, ""]:
    """Returns how many steps the optimizer's schedule has gone: fewer than the run's after its state began anew."""
    counts = optax.tree.get_all_with_path(opt_state, "count", filtering=_is_of_schedule)
    return counts[0][1] if counts else default


def _is_of_schedule(path: tuple, _: Any) -> bool:
    return any(getattr(entry, "tuple_name", "") == "ScaleByScheduleState" for entry in path)


def renewed(optimizer: optax.GradientTransformation, params: Any, opt_state: Any) -> Any:
    """Returns the optimizer's state at its beginning, laid out over devices as `opt_state` is."""
    return jax.jit(optimizer.init, out_shardings=jax.tree.map(lambda x: x.sharding, opt_state))(params)


def check_optimizer(config: ConfigDict) -> None:
    """Checks `config.optimizer` as far as no weights are needed; `config` is that of the run.

    Raises:
      UserError: an unknown optimizer, one that has nothing to work on, or a group that cannot be (see `make_groups`).
    """
    name = config.optimizer.name
    if name not in NAMES:
        raise UserError(f"config.optimizer.name: {name!r} must be one of: {', '.join(NAMES)}")
    if name == "muon" and ("lora" in config or "soft" in config):
        raise UserError(
            "config.optimizer.name=muon: it makes the updates of whole weight matrices orthogonal, but adapters and soft "
            "prompts are none; take adamw"
        )
    make_groups(config.optimizer)


def make_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Builds clipping by the global norm of all parameters, then `config.name` with the learning rates of the groups.

    Args:
      config: `config.optimizer`.
      schedule: the learning rate of parameters that are in no group.

    Raises:
      UserError: see `make_groups`.
    """
    groups = make_groups(config)
    if config.name == "adamw":
        update = _by_group(adamw(config), groups, schedule, config.weight_decay)
    else:
        update = on_matrices(partial(_on_matrices, config, groups, schedule))
    if config.clip_norm:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)
    return update


def _by_group(rule: Rule, groups: Sequence[Group], schedule: optax.Schedule, decay: float):
    """Applies one rule to all parameters, with the learning rates of their groups."""
    if not groups:
        return rule(schedule, decay)
    own = {group.name: rule(_scaled(schedule, group.scale), group.weight_decay) for group in groups}
    return optax.multi_transform({"": rule(schedule, decay), **own}, partial(_labels, groups))


def _on_matrices(
    config: ConfigDict, groups: Sequence[Group], schedule: optax.Schedule, views: Views
) -> optax.GradientTransformation:
    """Applies each parameter's rule, with the learning rate of its group."""
    of_group = _labels(groups, dict.fromkeys(views, 0))
    label, rules = ON_MATRICES[config.name](config, views)
    settings = {"": (schedule, config.weight_decay)}
    settings |= {group.name: (_scaled(schedule, group.scale), group.weight_decay) for group in groups}
    return optax.multi_transform(
        {f"{kind}/{name}": rule(*setting) for kind, rule in rules.items() for name, setting in settings.items()},
        {path: f"{label(view)}/{of_group[path]}" for path, view in views.items()},
    )


def _scaled(schedule: optax.Schedule, scale: float) -> optax.Schedule:
    return lambda step: scale * schedule(step)
