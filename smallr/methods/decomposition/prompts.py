"""Holds the prompts of the agents, two examples in each, and the fields that they must have."""

from __future__ import annotations

from collections.abc import Mapping

from smallr.agents.prompts import PromptFields, Prompts

_BOTH = PromptFields(frozenset({"problem", "questions"}))
# `answers` is also what a solver of an evaluation is asked.
FIELDS: Mapping[str, PromptFields] = {
    "sub_questions": PromptFields(frozenset({"problem"})),
    "answers": _BOTH,
    "usefulness": _BOTH,
}


def load_prompts(files: Mapping[str, str]) -> Prompts:
    """Reads all prompts.

    Args:
      files: name -> path of a file that replaces smallr's own; empty for that.

    Raises:
      UserError: see `Prompts`.
    """
    return Prompts("smallr.methods.decomposition", FIELDS, files)
