"""Reads the replies of verifiers and writing agents strictly: a value, or None and the reason."""

from __future__ import annotations

import re

from smallr.agents.agent import Reading
from smallr.agents.reading import in_script_of
from smallr.evals.extraction import after_reasoning
from smallr.methods.crv import formats
from smallr.sampling.requests import Sample

_VERDICT = re.compile(r"^\W*verdict\W+(in)?correct\b[\s:.,;*–—-]*(.*)$", re.IGNORECASE | re.MULTILINE)
_WHOLE = re.compile(r"(?:```\w*\n(?P<fenced>.*)\n```|<rationale>(?P<tagged>.*)</rationale>)", re.DOTALL)
# What states an answer; a rationale is more than that.
_STATEMENT = re.compile(
    r"\\f?boxed\s*\{[^{}]*\}|\b(?:so|thus|hence|therefore|the|final|correct|answer|is)\b|####|[\d\s.,:;()$*_`%-]+",
    re.IGNORECASE,
)


def read_verdict(sample: Sample) -> Reading[tuple[bool, str]]:
    """Reads the verifier's verdict, and the mistake that it names."""
    text = after_reasoning(sample.text).strip()
    if not text:
        return None, "empty reply"
    found = [(not negated, reason.strip()) for negated, reason in _VERDICT.findall(text)]
    word = text.strip(".!*_`\"' ").lower()
    if word in ("correct", "incorrect"):
        found = [(word == "correct", "")]
    if not found:
        return None, "cut off" if sample.finish_reason == "length" else "no verdict"
    if len({right for right, _ in found}) > 1:
        return None, "several verdicts"
    return found[-1], ""


def read_rationale(sample: Sample, form: str, question: str, before: str) -> Reading[str]:
    """Reads a rationale that was written anew.

    Args:
      sample: the reply.
      form: one of `formats.FORMATS`.
      question: whose script the rationale must be in.
      before: the rationale that was to be changed.
    """
    if sample.finish_reason == "length":
        return None, "cut off"
    # Only where no thoughts are asked for are they the agent's own.
    text = (after_reasoning(sample.text) if form == "plain" else sample.text).strip()
    if whole := _WHOLE.fullmatch(text):
        text = (whole["fenced"] or whole["tagged"] or "").strip()
    if not text:
        return None, "empty reply"
    if problem := formats.misfit(text, form):
        return None, problem
    if not in_script_of(text, f"{question} {before}"):
        return None, "another language"
    if text == before:
        return None, "unchanged"
    if not _STATEMENT.sub("", text):
        return None, "nothing but an answer"
    return text, ""
