"""Holds the prompts of the agents, and the fields of each."""

from __future__ import annotations

from collections.abc import Mapping

from smallr.agents.prompts import PromptFields, Prompts

_RATIONALE = frozenset({"question", "rationale"})
_WRITING = PromptFields(_RATIONALE, frozenset({"student", "answer", "format"}))
# `feedback` is put behind a rethinking prompt that is asked again; `student` is what the student is asked, when it is
# sampled and when it is trained.
FIELDS: Mapping[str, PromptFields] = {
    **dict.fromkeys(("critique", "grade"), PromptFields(_RATIONALE, frozenset({"student", "answer"}))),
    **dict.fromkeys(("extend", "simplify", "repair", "inject"), _WRITING),
    "feedback": PromptFields(frozenset({"reason"}), frozenset({"attempt"})),
    "verify": PromptFields(_RATIONALE, frozenset({"answer"})),
    "student": PromptFields(frozenset({"question"})),
}


def load_prompts(files: Mapping[str, str]) -> Prompts:
    """Reads all prompts.

    Args:
      files: name -> path of a file that replaces smallr's own; empty for that.

    Raises:
      UserError: see `Prompts`.
    """
    return Prompts("smallr.methods.crv", FIELDS, files)
