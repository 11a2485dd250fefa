"""What agents reply, read strictly: each function gives a value, or None and why there is none."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter

from smallr.evals.extraction import after_reasoning
from smallr.methods.crv import formats
from smallr.methods.crv.rows import LABELS
from smallr.sampling.requests import Sample

_LABEL = re.compile(rf"\b({'|'.join(LABELS)})\b")
_VERDICT = re.compile(r"^\W*verdict\W+(in)?correct\b[\s:.,;*–—-]*(.*)$", re.IGNORECASE | re.MULTILINE)
_WHOLE = re.compile(r"(?:```\w*\n(?P<fenced>.*)\n```|<rationale>(?P<tagged>.*)</rationale>)", re.DOTALL)
# What states an answer; a rationale is more than that.
_STATEMENT = re.compile(
    r"\\f?boxed\s*\{[^{}]*\}|\b(?:so|thus|hence|therefore|the|final|correct|answer|is)\b|####|[\d\s.,:;()$*_`%-]+",
    re.IGNORECASE,
)
_FOREIGN = 0.2  # share of letters in scripts that the question does not use, from which a reply is in another language


def read_label(sample: Sample) -> tuple[str | None, str]:
    """The critic's one word."""
    text = after_reasoning(sample.text).lower()
    word = text.strip().strip(".!:*_`\"'()[] \n\t")
    if word in LABELS:
        return word, ""
    found = set(_LABEL.findall(text))
    if not word:
        return None, "empty reply"
    return None, "several labels" if len(found) > 1 else "more than a label" if found else "no label"


def read_verdict(sample: Sample) -> tuple[tuple[bool, str] | None, str]:
    """The verifier's verdict, and the mistake that it names."""
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


def read_rationale(sample: Sample, form: str, question: str, before: str) -> tuple[str | None, str]:
    """A rationale that was written anew.

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


def in_script_of(text: str, model: str) -> bool:
    """Whether the letters of a text are, but for a few, in scripts that another text uses.

    This tells Chinese from English, not French from English.
    """
    known = set(_scripts(model))
    scripts = _scripts(text)
    total = sum(scripts.values())
    return not known or not total or sum(scripts[name] for name in scripts if name not in known) <= _FOREIGN * total


def _scripts(text: str) -> Counter[str]:
    return Counter(map(_script, filter(str.isalpha, text)))


@functools.cache
def _script(letter: str) -> str:
    """The first word of a letter's name: LATIN, CYRILLIC, CJK, …"""
    return unicodedata.name(letter, "UNKNOWN").split()[0]
