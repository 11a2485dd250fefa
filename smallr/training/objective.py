"""Makes the objective that a step minimises: from per-token log-probs and columns to one number.

An objective says which columns it needs (checked on the host before training), how its losses are
averaged, and what it reports of each example. Averages over pairs, gaps and windows are taken on the host from
these per-example values.
"""

from __future__ import annotations

from collections.abc import Callable

from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.training.objectives.base import Objective, PerExample, Summariser
from smallr.training.objectives.choice import Choice
from smallr.training.objectives.ilql import Ilql
from smallr.training.objectives.likelihood import Likelihood
from smallr.training.objectives.outcome import OutcomeReward
from smallr.training.objectives.preference import Preference
from smallr.training.objectives.unpaired import Unpaired
from smallr.training.references import ReferenceOptions

__all__ = [
    "OBJECTIVES",
    "Choice",
    "Ilql",
    "Likelihood",
    "Objective",
    "OutcomeReward",
    "PerExample",
    "Preference",
    "Summariser",
    "Unpaired",
    "make_objective",
    "register_objective",
]

# What `config.objective.name` may be; the other fields of `config.objective` are the objective's own.
OBJECTIVES: dict[str, Callable[[ConfigDict], Objective]] = {
    "preference": Preference.from_fields,
    "unpaired": Unpaired.from_fields,
    "sft": Likelihood.from_fields,
    "rationale": Likelihood.from_fields,
    "choice": Choice.from_fields,
    "ilql": Ilql.from_fields,
    "outcome": OutcomeReward.from_fields,
}
_OWN = frozenset(OBJECTIVES)


def register_objective(name: str) -> Callable[[type[Objective]], type[Objective]]:
    """Gives an objective a name for `config.objective.name`; to be used as a decorator, on a dataclass.

        @smallr.register_objective("focal")
        @dataclasses.dataclass(frozen=True)
        class Focal(smallr.Objective):
            gamma: float = 2.0

    The other fields of `config.objective` are the fields of the class. An objective of the same name that was registered
    before is replaced; those of smallr are not.

    Raises:
      UserError: a name that is smallr's own.
    """
    if name in _OWN:
        raise UserError(f"register_objective: {name!r} must be a new name; smallr has an objective of this name")

    def register(objective: type[Objective]) -> type[Objective]:
        OBJECTIVES[name] = objective.from_fields
        return objective

    return register


def make_objective(config: ConfigDict) -> Objective:
    """Returns the objective that `config.objective` describes.

    Raises:
      UserError: an unknown name, a field out of its range, a field that nothing would read, or a loss that
        micro-batches would change.
    """
    name = config.objective.name
    if name not in OBJECTIVES:
        raise UserError(f"config.objective.name: {name!r} must be one of: {', '.join(OBJECTIVES)}")
    objective = OBJECTIVES[name](config.objective)
    ReferenceOptions.from_fields(config.objective)  # whether its fields can be used
    if objective.whole_step and config.batch.accumulation > 1:
        raise UserError(
            f"{objective.whole_step}, but micro-batches are computed one by one: set config.batch.accumulation=1"
        )
    return objective
