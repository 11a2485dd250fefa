"""Opens what an ILQL run has learned, to steer the policy that it was trained beside."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import logging
from flax import nnx
from jax.sharding import Mesh

from smallr.core.errors import UserError
from smallr.models.decoder import Decoder
from smallr.models.heads import HEADS, Q
from smallr.models.loading import load_decoder
from smallr.sampling.advantages import add_advantages, pack_heads
from smallr.training.digest import tree_digest
from smallr.training.opening import source_of
from smallr.training.saved import SavedRun, find_run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_PREFIX = f"params/{HEADS}/{Q}/"


@dataclasses.dataclass(frozen=True)
class Advantage:
    """Represents Q heads of a run, by which a policy is steered: log pi + beta (Q - V).

    Attributes:
      run: whose heads they are.
      name: of the run, for messages.
      beta: how many nats an advantage of 1 is worth; 0 leaves the policy as it is, to the bit.
    """

    run: SavedRun
    name: str
    beta: float

    @property
    def policy(self) -> str:
        """Returns the name of the policy that the run began from."""
        return self.run.config["model"]

    @property
    def identity(self) -> str:
        """Returns what changes results beside the policy; empty at beta 0."""
        if not self.beta:
            return ""
        checkpoint = self.run.checkpoint
        return f" advantage {checkpoint.digest} {checkpoint.metadata.get('frozen', '')} {self.beta:g}"

    def engine_options(self, policy: Decoder, tokenizer: PreTrainedTokenizerFast, mesh: Mesh) -> dict[str, Any]:
        """Returns the arguments of `Engine` that steer a policy.

        The heads read the states of the decoder that they were trained on. Where the run has frozen all of it and the policy
        is that decoder, its states serve both; else the run's decoder reads every token beside the policy.

        Raises:
          UserError: the policy has another vocabulary, or the run's model has changed.
        """
        if not self.beta:
            return {}
        vocabulary, width = self._sizes()
        if policy.config.vocab_size != vocabulary:
            raise UserError(
                f"--advantage: {self.name} has values of {vocabulary} tokens, but the policy has {policy.config.vocab_size}: "
                f"take a policy with the vocabulary of {self.policy}"
            )
        trunk = None if self._shares_trunk(policy) else self._trunk(policy, tokenizer, mesh)
        if (trunk or policy).config.d_model != width:
            raise UserError(
                f"--advantage: the heads of {self.name} are of a model of width {width}, not of {self.policy}"
            )
        up, up_bias, table = (self.run.checkpoint.read(_PREFIX + name) for name in ("up", "up_bias", "table"))
        heads = pack_heads(up, up_bias, table, beta=self.beta, dtype=policy.config.dtype, mesh=mesh)
        return {"hook": add_advantages, "hook_shared": heads, "critic": trunk}

    def _sizes(self) -> tuple[int, int]:
        """Returns the heads' vocabulary and the width of their decoder."""
        leaves = self.run.checkpoint.leaves
        return leaves[f"{_PREFIX}table"][1][1], leaves[f"{_PREFIX}up"][1][0]

    def _shares_trunk(self, policy: Decoder) -> bool:
        trained = [name for name in self.run.checkpoint.leaves if name.startswith("params/")]
        if not all(name.startswith(f"params/{HEADS}/") for name in trained):
            return False
        return tree_digest(nnx.state(policy)) == self.run.checkpoint.metadata.get("frozen")

    def _trunk(self, policy: Decoder, tokenizer: PreTrainedTokenizerFast, mesh: Mesh) -> Decoder:
        source = source_of(self.run, str(self.run.checkpoint.folder))
        if source.tokenizer().get_vocab() != tokenizer.get_vocab():
            raise UserError(
                f"--advantage: {self.name} was trained with another tokenizer than the policy's, so its values are of other "
                f"tokens: take a policy with the tokenizer of {self.policy}"
            )
        logging.info("the values of %s read states of the run's own decoder, a second pass for each token", self.name)
        return load_decoder(source, mesh, dtype=policy.config.dtype)


def open_advantage(name: str, beta: float) -> Advantage:
    """Opens the Q heads of a run.

    Args:
      name: a workdir, or one of its checkpoints.
      beta: how many nats an advantage of 1 is worth.

    Raises:
      UserError: no such run, a run without Q heads, or a beta that is negative or not finite.
    """
    if not (math.isfinite(beta) and beta >= 0):
        raise UserError(f"--beta: {beta:g} must be a finite number >= 0")
    run = find_run(Path(name).expanduser())
    if run is None:
        raise UserError(f"--advantage: {name} is not the workdir of a run, or one of its checkpoints")
    if f"{_PREFIX}table" not in run.checkpoint.leaves:
        raise UserError(
            f"--advantage: {name} has no Q heads: it takes a run of objective ilql, e.g. of configs/decomposition/ilql.py"
        )
    return Advantage(run, name, float(beta))
