r"""Writes rationales with thoughts and solution in separate parts, or plain ones; the final answer is in `\boxed{}`.

plain    no markers
think    <think> thoughts </think> solution
sky_t1   <|begin_of_thought|> thoughts <|end_of_thought|> <|begin_of_solution|> solution <|end_of_solution|>, the
markers of Sky-T1 and Bespoke-Stratos
"""

from __future__ import annotations

import re

from smallr.evals.extraction import boxed

FORMATS = ("plain", "think", "sky_t1")
_MARKED = {
    "think": re.compile(r"\s*<think>(?P<thoughts>.*?)</think>(?P<solution>.*)", re.DOTALL),
    "sky_t1": re.compile(
        r"\s*<\|begin_of_thought\|>(?P<thoughts>.*?)<\|end_of_thought\|>\s*"
        r"<\|begin_of_solution\|>(?P<solution>.*?)<\|end_of_solution\|>\s*",
        re.DOTALL,
    ),
}
_MARKER = re.compile(r"</?think>|<\|(?:begin|end)_of_(?:thought|solution)\|>")
_BOX = r"and end with the final answer in \boxed{}."
INSTRUCTIONS = {
    "plain": f"Write plain text without headings {_BOX}",
    "think": f"Write the thoughts between <think> and </think>, then the solution in short, {_BOX}",
    "sky_t1": "Write the thoughts between <|begin_of_thought|> and <|end_of_thought|>, then the solution in short "
    f"between <|begin_of_solution|> and <|end_of_solution|>, {_BOX}",
}
_HASHES = re.compile(r"\s*####\s*(.+?)\s*\Z")


def detect(text: str) -> str:
    """Returns the format that a text's markers say it is in."""
    return next((name for name, pattern in _MARKED.items() if pattern.fullmatch(text)), "plain")


def parts(text: str) -> tuple[str, str]:
    """Returns thoughts and solution; a plain text is all solution."""
    pattern = _MARKED.get(detect(text))
    if pattern is None:
        return "", text.strip()
    match = pattern.fullmatch(text)
    return match["thoughts"].strip(), match["solution"].strip()


def compose(thoughts: str, solution: str, form: str) -> str:
    """Returns a text in a format."""
    match form:
        case "think":
            return f"<think>\n{thoughts}\n</think>\n\n{solution}"
        case "sky_t1":
            return (
                f"<|begin_of_thought|>\n\n{thoughts}\n\n<|end_of_thought|>\n\n"
                f"<|begin_of_solution|>\n\n{solution}\n\n<|end_of_solution|>"
            )
    return f"{thoughts}\n\n{solution}".strip()


def misfit(text: str, form: str) -> str:
    """Returns what keeps a text from being in a format; empty if it is in it."""
    if form == "plain":
        return f"the marker {found[0]} does not belong there" if (found := _MARKER.search(text)) else ""
    if detect(text) != form:
        return f"it is not in the format {form}"
    thoughts, solution = parts(text)
    return "" if thoughts and solution else "thoughts or solution are empty"


def convert(text: str, form: str, answer: str) -> str:
    r"""Returns a text in another format, its solution with the answer in a box.

    Args:
      text: in any format.
      form: to be.
      answer: what goes into a box where there is none; empty: no box is added. A `#### 18` becomes a box.
    """
    thoughts, solution = parts(text)
    solution = _with_box(solution, answer)
    if form != "plain" and not thoughts:
        box = boxed(solution)
        thoughts, solution = solution, solution if box is None else f"The answer is \\boxed{{{box}}}."
    return compose(thoughts, solution, form)


def _with_box(solution: str, answer: str) -> str:
    if boxed(solution) is not None:
        return solution
    if hashes := _HASHES.search(solution):
        return f"{solution[: hashes.start()]}\nThe answer is \\boxed{{{hashes[1]}}}."
    return f"{solution} The answer is \\boxed{{{answer}}}." if answer else solution
