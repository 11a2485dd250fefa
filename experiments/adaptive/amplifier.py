"""Tests whether the rationale amplifies the loss of hard samples, by likelihoods and gradient norms of single examples.

Chen et al. (arXiv 2404.09170) say that it does. Here a sample is hard if its answer is unlikely when it is asked for at once,
-log P(answer | question), whatever the order that is trained. Sorted by that, the samples fall into quarters; of each the
mean NLL of answer and rationale is taken, and the mean norm of the gradient of each of the two and of their sum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Float
from scipy import stats

from smallr.data.batch import Batch
from smallr.data.packing import PackingPlan
from smallr.losses.rationale import role_nll
from smallr.training.forward import score
from smallr.training.policy import ModelFunctions
from smallr.training.trainer import Trainer

Values = Mapping[str, Float[np.ndarray, "examples"]]


def measure(trainer: Trainer, count: int) -> dict[str, np.ndarray]:
    """Computes NLL (nats) and gradient norms of the first `count` training examples, one by one.

    Returns:
      float64 [count] each: nll_answer, nll_rationale, gradient_answer, gradient_rationale, gradient (of their sum), cosine
      (between the two parts' gradients); in the order of the training rows.
    """
    split, length = trainer.training, trainer.config.batch.row_length
    alone = PackingPlan(split.plan.sizes, 1, length, seed=0, shuffle=False, packing=False, share_prompt=True, window=1)
    partition, chunk = trainer.partition, trainer.config.compute.logp_chunk
    single = jax.jit(lambda params, frozen, batch: _single(partition.policy, chunk, params, frozen, batch))
    batches = dataclasses.replace(split, plan=alone).batches(trainer.mesh, 0, min(count, len(split.examples)))
    found = [jax.device_get(single(trainer.params, partition.frozen, batch)) for batch in batches]
    order = np.argsort([each.pop("example") for each in found])
    return {name: np.array([found[i][name] for i in order], np.float64) for name in found[0]}


def _single(
    functions: ModelFunctions, chunk: int, params: nnx.State, frozen: nnx.State, batch: Batch
) -> dict[str, jax.Array]:
    def nlls(params: nnx.State):
        scores = score(functions.decoder(params, frozen), batch, chunk)
        nll = role_nll(scores.logps, batch.completion, batch.role, batch.example.shape[1])
        return jnp.sum(nll.answer), jnp.sum(nll.rationale)

    (answer, rationale), pull = jax.vjp(nlls, params)
    one, zero = jnp.ones(()), jnp.zeros(())
    (of_answer,), (of_rationale,) = pull((one, zero)), pull((zero, one))
    norms = optax.tree.norm(of_answer), optax.tree.norm(of_rationale)
    return {
        "nll_answer": answer,
        "nll_rationale": rationale,
        "gradient_answer": norms[0],
        "gradient_rationale": norms[1],
        "gradient": optax.tree.norm(jax.tree.map(jnp.add, of_answer, of_rationale)),
        "cosine": optax.tree.vdot(of_answer, of_rationale) / jnp.maximum(norms[0] * norms[1], 1e-30),
        "example": jnp.max(batch.example),
    }


def summary(values: Values, hardness: Float[np.ndarray, "examples"]) -> dict[str, float]:
    """Returns what the claim says of some examples.

    * spearman: rank correlation of answer NLL and rationale NLL.
    * nll_share, nll_share_answer: of the summed NLL (of the answers' alone) that the hardest quarter holds.
    * gradient_share, gradient_share_answer: the same of the summed gradient norms.
    * rationale_ratio: mean rationale NLL of the hardest quarter over that of the others.
    * gradient_ratio: the same of the norm of the rationale's gradient.
    * cosine: mean cosine between the gradients of answer and rationale.

    Args:
      values: from `measure`.
      hardness: what makes a sample hard; the quarter with the highest is the hardest.
    """
    hardest = np.argsort(-hardness, kind="stable")[: max(1, round(len(hardness) / 4))]
    hard = np.zeros(len(hardness), bool)
    hard[hardest] = True

    def share(name: str) -> float:
        return float(values[name][hard].sum() / max(values[name].sum(), 1e-30))

    def ratio(name: str) -> float:
        return float(values[name][hard].mean() / max(values[name][~hard].mean(), 1e-30))

    both = {**values, "nll": values["nll_answer"] + values["nll_rationale"]}
    values = both
    return {
        "spearman": float(stats.spearmanr(values["nll_answer"], values["nll_rationale"]).statistic),
        "nll_share": share("nll"),
        "nll_share_answer": share("nll_answer"),
        "gradient_share": share("gradient"),
        "gradient_share_answer": share("gradient_answer"),
        "rationale_ratio": ratio("nll_rationale"),
        "gradient_ratio": ratio("gradient_rationale"),
        "cosine": float(values["cosine"].mean()),
    }
