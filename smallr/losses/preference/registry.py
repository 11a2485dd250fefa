"""Finds losses by name: what each needs, which fields it has, and weighted sums of several.

Nothing outside this package knows a loss by its name: the columns of a batch, the reference, and the fields of a config
follow from what a loss declares here. Declarations are plain data, read without JAX; the functions stand in `pairwise`,
`reference_free` and `whole_step`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from smallr.core.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from smallr.losses.preference.pairs import Pairs

    LossFn = Callable[..., Float[Array, "*pairs"]]


@dataclasses.dataclass(frozen=True)
class Field:
    """Describes a number that a loss has besides beta.

    Attributes:
      default: as in the paper.
      meaning: for the list of a config's fields.
      low, high: bounds; `open` has "(" or ")" where a bound is excluded.
    """

    default: float
    meaning: str
    low: float = -math.inf
    high: float = math.inf
    open: str = ""

    def check(self, name: str, value: float) -> None:
        """Raises UserError where the value is out of bounds."""
        above = value > self.low if "(" in self.open else value >= self.low
        below = value < self.high if ")" in self.open else value <= self.high
        if not (math.isfinite(value) and above and below):
            left, right = "(" if "(" in self.open else "[", ")" if ")" in self.open else "]"
            raise UserError(f"config.objective.{name}: {value} is not in {left}{self.low:g}, {self.high:g}{right}")


@dataclasses.dataclass(frozen=True)
class Loss:
    """Describes a pairwise loss and what it needs.

    Attributes:
      name: of the function, (pairs, **fields) -> one loss a pair.
      module: where the function is; empty if it is given.
      reference: whether the reference's log-probs have a part in it.
      beta: whether it has a strength beta at all.
      positive_beta: whether beta 0 is undefined (a division).
      no_beta_per_pair: why a beta of each pair would have no meaning; empty where it has one.
      per_token: whether its implicit reward is a mean over tokens, not a sum.
      divergence: whether it is a function of the difference of two rewards, so that another f-divergence than the
        reverse KL can stand behind them (the normaliser cancels in a difference only).
      whole_step: whether a pair's loss depends on the other pairs of the step.
      fields: numbers that the config has for it.
      given: the function itself, of a loss that is registered from outside.
    """

    name: str
    module: str
    reference: bool = True
    beta: bool = True
    positive_beta: bool = False
    no_beta_per_pair: str = ""
    per_token: bool = False
    divergence: bool = False
    whole_step: bool = False
    fields: Mapping[str, Field] = dataclasses.field(default_factory=dict)
    given: LossFn | None = None

    @property
    def function(self) -> LossFn:
        """Returns the function, imported when it is asked for."""
        return self.given or getattr(importlib.import_module(self.module), self.name)


LOSSES: dict[str, Loss] = {}


def declare(module: str, name: str, **needs) -> None:
    """Puts a loss into `LOSSES`: a function of a module, and what it needs (the attributes of `Loss`)."""
    LOSSES[name] = Loss(name, module, **needs)


def register_loss(function: LossFn | None = None, *, fields: Mapping[str, Field] | None = None, **needs: Any) -> Any:
    """Gives a loss of pairs a name, that of its function, for `config.objective.loss`; to be used as a decorator.

        @smallr.register_loss
        def clipped(pairs, *, ceiling: float = 2.0):
            return jnp.maximum(-jax.nn.log_sigmoid(pairs.beta * pairs.h), -ceiling)

    The function takes `Pairs` and returns one loss for each. Its keyword-only parameters are fields of
    `config.objective`. A loss of the same name that was registered before is replaced; those of smallr are not.

    Args:
      function: the loss.
      fields: meanings and bounds of fields; those that are not named may have any value.
      **needs: attributes of `Loss`, e.g. `reference=False` for a loss of log-probs alone.

    Raises:
      UserError: a name that is smallr's own, a parameter without a default, or an unknown need.
    """
    if function is None:
        return functools.partial(register_loss, fields=fields, **needs)
    name, known = function.__name__, {field.name for field in dataclasses.fields(Loss)} - {"name", "module", "given"}
    if name in RECIPES or (name in LOSSES and LOSSES[name].given is None) or not name.isidentifier():
        raise UserError(f"register_loss: {name!r} must be a new name; smallr has a loss of this name")
    if unknown := sorted(set(needs) - known):
        raise UserError(f"register_loss: {unknown[0]!r} of {name} must be one of: {', '.join(sorted(known))}")
    own = {}
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.kind is not parameter.KEYWORD_ONLY or not isinstance(parameter.default, int | float):
            raise UserError(
                f"register_loss: {name}({parameter.name}): parameters behind the pairs are keyword-only numbers with a "
                f"default, as in `def {name}(pairs, *, {parameter.name}=1.0)`"
            )
        own[parameter.name] = Field(float(parameter.default), "")
    if unknown := sorted(set(fields or {}) - set(own)):
        raise UserError(f"register_loss: {name} has no parameter {unknown[0]!r}, which `fields` describes")
    LOSSES[name] = Loss(name, "", fields={**own, **(fields or {})}, given=function, **needs)
    return function


def _smoothing(default: float = 0.0, open: str = "") -> dict[str, Field]:
    return {"label_smoothing": Field(default, "share of pairs whose label is taken to be flipped", 0.0, 0.5, open)}


_GAMMA = {"simpo_gamma": Field(1.0, "target margin of the two rewards", 0.0)}
_TAU = {"discopop_tau": Field(0.05, "temperature of the blend of its two losses", 0.0, 1.0, "(")}
_SORTED = "compares sorted values, so that its terms belong to no pair"
_PAIRWISE, _REFERENCE_FREE, _WHOLE_STEP = (
    f"smallr.losses.preference.{name}" for name in ("pairwise", "reference_free", "whole_step")
)
declare(_PAIRWISE, "sigmoid", divergence=True, fields=_smoothing())
declare(_PAIRWISE, "sigmoid_norm", divergence=True, per_token=True, fields=_smoothing())
declare(_PAIRWISE, "robust", divergence=True, fields=_smoothing(open=")"))
declare(_PAIRWISE, "hinge", divergence=True)
declare(_PAIRWISE, "ipo", divergence=True, positive_beta=True)
declare(_PAIRWISE, "ipo_norm", divergence=True, positive_beta=True, per_token=True)
declare(_PAIRWISE, "exo_pair", divergence=True, fields=_smoothing(1e-3, "("))
declare(_PAIRWISE, "nca_pair")
declare(_PAIRWISE, "bco_pair")
declare(_PAIRWISE, "sppo_hard", positive_beta=True)
declare(_PAIRWISE, "apo_zero")
declare(_PAIRWISE, "apo_down")
declare(_PAIRWISE, "discopop", divergence=True, fields=_TAU)
declare(_REFERENCE_FREE, "simpo", reference=False, per_token=True, fields=_GAMMA | _smoothing())
declare(_REFERENCE_FREE, "cpo_prefer", reference=False, fields=_smoothing())
declare(_REFERENCE_FREE, "odds_ratio", reference=False, beta=False, per_token=True)
declare(_REFERENCE_FREE, "sft", reference=False, beta=False, per_token=True)
declare(_REFERENCE_FREE, "nll", reference=False, beta=False)
declare(_WHOLE_STEP, "aot", whole_step=True, no_beta_per_pair=_SORTED, fields=_smoothing())
declare(_WHOLE_STEP, "aot_unpaired", whole_step=True, no_beta_per_pair=_SORTED, fields=_smoothing())
declare(_WHOLE_STEP, "bco_pair_shift", whole_step=True)
# Published objectives that are mixes of losses.
RECIPES: dict[str, str] = {
    "dpo": "sigmoid",
    "rpo": "sigmoid+sft",  # Pang et al., arXiv 2404.19733, equation 1, alpha = 1
    "mpo": "0.8*sigmoid+0.2*bco_pair+sft",  # Wang et al., arXiv 2411.10442, section 4
    "cpo": "cpo_prefer+nll",  # Xu et al., arXiv 2401.08417, section 4
    "orpo": "sft+0.1*odds_ratio",  # Hong et al., arXiv 2403.07691, equation 6, lambda = 0.1
}


@dataclasses.dataclass(frozen=True)
class WeightedLoss:
    """Computes a weighted sum of losses; what it needs is what any of them needs."""

    expression: str
    terms: tuple[tuple[float, Loss], ...]

    @functools.cached_property
    def fields(self) -> dict[str, Field]:
        """Returns fields of all terms; a name means the same in each, the default is that of the first."""
        fields: dict[str, Field] = {}
        for _, loss in self.terms:
            fields = {**loss.fields, **fields}
        return fields

    @property
    def reference(self) -> bool:
        """Returns whether any term needs a reference."""
        return any(loss.reference for _, loss in self.terms)

    @property
    def beta(self) -> bool:
        """Returns whether any term has a beta."""
        return any(loss.beta for _, loss in self.terms)

    @property
    def positive_beta(self) -> bool:
        """Returns whether any term divides by beta."""
        return any(loss.positive_beta for _, loss in self.terms)

    @property
    def no_beta_per_pair(self) -> str:
        """Says why a beta of each pair has no meaning in some term; empty if it has one."""
        return next((f"{loss.name} {loss.no_beta_per_pair}" for _, loss in self.terms if loss.no_beta_per_pair), "")

    @property
    def per_token(self) -> bool:
        """Returns whether the implicit reward is a mean over tokens: that of the first term."""
        return self.terms[0][1].per_token

    @property
    def no_divergence(self) -> str:
        """Returns the name of a term that allows no other divergence than the reverse KL, or empty."""
        return next((loss.name for _, loss in self.terms if loss.reference and not loss.divergence), "")

    @property
    def whole_step(self) -> str:
        """Returns the name of a term that needs all pairs of a step at once, or empty."""
        return next((loss.name for _, loss in self.terms if loss.whole_step), "")

    def check(self, values: Mapping[str, float]) -> None:
        """Raises UserError where a field is out of the bounds of any term."""
        for _, loss in self.terms:
            for name, field in loss.fields.items():
                field.check(name, values[name])

    def __call__(
        self, pairs: Pairs, values: Mapping[str, float], scores: Pairs | None = None
    ) -> Float[Array, "*pairs"]:
        """Returns the losses in float32.

        Args:
          pairs: log-probs.
          values: of `fields`.
          scores: what terms that have a reference are computed on, where it is not `pairs` (`divergence.scored`).
        """
        pairs = pairs.float32()
        scores = pairs if scores is None else scores.float32()
        total = 0.0
        for weight, loss in self.terms:
            own = {name: values[name] for name in loss.fields}
            total = total + weight * loss.function(scores if loss.reference else pairs, **own)
        return total


def parse(expression: str) -> WeightedLoss:
    """Reads `sigmoid`, or a weighted sum such as `0.8*sigmoid+0.2*bco_pair+sft`; published mixes have own names.

    Raises:
      UserError: an unknown loss (the message names the nearest), or a weight that is no positive number.
    """
    terms = []
    for term in RECIPES.get(expression, expression).replace(" ", "").split("+"):
        match = re.fullmatch(r"(?:([0-9.eE-]+)\*)?(\w+)", term)
        if not match:
            raise UserError(
                f"config.objective.loss: {expression!r} is not a sum of losses such as 0.8*sigmoid+0.2*bco_pair"
            )
        number, name = match.groups()
        if name not in LOSSES:
            near = difflib.get_close_matches(name, [*LOSSES, *RECIPES], 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            known = ", ".join(sorted([*LOSSES, *RECIPES]))
            raise UserError(f"config.objective.loss: {name!r} must be one of: {known}{hint}")
        try:
            weight = float(number or 1)
        except ValueError:
            weight = math.nan
        if not (math.isfinite(weight) and weight > 0):
            raise UserError(f"config.objective.loss: the weight {number} of {name} is not a positive number")
        terms.append((weight, LOSSES[name]))
    return WeightedLoss(expression, tuple(terms))
