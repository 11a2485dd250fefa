"""Plays the teacher by rule for the small tasks of Fine-tune-CoT: coin flips, last letters, shuffled objects, dates.

The published files (Ho et al., arXiv 2212.10071) have questions and answers; the rationales of their teacher are not among
them. The steps of these tasks can be derived, so that a rule writes them here: in the words of the worked examples of Wei et al.
(arXiv 2201.11903) for last letters, in fewer words than theirs for coin flips, in smallr's own for the others.
A question that a rule does not understand, or for which it finds another answer than the file has, gets no rationale.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable, Sequence
from datetime import date, timedelta

PEOPLE = ("Alice", "Bob", "Claire")
Groups = tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class Derived:
    """Holds what a rule finds for a question.

    Attributes:
      rationale: one step a sentence.
      answer: what the steps lead to.
      items: groups of texts of which one may be mistaken for another of its group; numbers go without saying.
    """

    rationale: str
    answer: str
    items: Groups = ()


def coin_flip(question: str, gold: str = "") -> Derived | None:
    """Finds how often the coin is flipped, whether that is odd, and which side is up then."""
    acts = re.findall(r"\w+ (flips|does not flip) the coin\.", question)
    if not acts:
        return None
    flips = acts.count("flips")
    parity, side = ("odd", "tails") if flips % 2 else ("even", "heads")
    steps = f"The coin was flipped {flips} times. {flips} is an {parity} number. So it is {side} up."
    return Derived(steps, "no" if flips % 2 else "yes", (("even", "odd"), ("heads", "tails")))


def last_letters(question: str, gold: str = "") -> Derived | None:
    """Returns the last letter of each word, then all of them."""
    found = re.search(r'words in "([^"]+)"', question)
    if found is None:
        return None
    words = found[1].split()
    answer = "".join(word[-1] for word in words)
    steps = [f'The last letter of "{word}" is "{word[-1]}".' for word in words]
    letters = tuple(f'"{chr(code)}"' for code in range(ord("a"), ord("z") + 1))
    return Derived(" ".join([*steps, f'Concatenating them is "{answer}".']), answer, (letters,))


def shuffled_objects(question: str, gold: str = "") -> Derived | None:
    """Finds who has which option after each swap."""
    swaps = re.search(r"First, (\w+) and (\w+) .*? Then, (\w+) and (\w+) .*? Finally, (\w+) and (\w+) ", question)
    asked = re.search(r"At the end of [\w ]+, (\w+) ", question)
    if not (swaps and asked):
        return None
    held, steps = list("ABC"), []  # options are listed in the order of the people
    for when, first, second in zip(
        ("First", "Then", "Finally"), swaps.groups()[::2], swaps.groups()[1::2], strict=True
    ):
        i, j = PEOPLE.index(first), PEOPLE.index(second)
        held[i], held[j] = held[j], held[i]
        steps.append(f"{when}, {', '.join(f'{name} {thing}' for name, thing in zip(PEOPLE, held, strict=True))}.")
    return Derived(" ".join(steps), held[PEOPLE.index(asked[1])], (("A", "B", "C"),))


# What is asked -> days from today to it; None: a month or a year ago, whose day stays.
_OFFSETS = {
    "today": 0,
    "tomorrow": 1,
    "24 hours later": 1,
    "yesterday": -1,
    "10 days ago": -10,
    "one week ago from today": -7,
    "one week from today": 7,
    "one year ago from today": None,
    "a month ago": None,
}


def dates(question: str, gold: str = "") -> Derived | None:
    """Finds today's date, then the one that is asked for.

    The premises are free text, which no short rule reads: today is found backwards from the right option `gold`. So this
    teacher has seen the answer.
    """
    asked = re.search(r"What is the date (.+?) in MM/DD/YYYY", question)
    options = dict(re.findall(r"\(([A-F])\) (\d\d/\d\d/\d{4})", question))
    if not asked or asked[1] not in _OFFSETS or gold not in options:
        return None
    month, day, year = map(int, options[gold].split("/"))
    offset, told = _OFFSETS[asked[1]], asked[1][0].upper() + asked[1][1:]
    try:
        there = date(year, month, day)
        if offset is not None:
            today = there - timedelta(days=offset)
        elif "year" in asked[1]:
            today = there.replace(year=year + 1)
        else:
            today = there.replace(year=year + month // 12, month=month % 12 + 1)
    except ValueError:  # no such day
        return None
    steps = f"Today is {today:%m/%d/%Y}." + (f" {told} is {there:%m/%d/%Y}." if offset != 0 else "")
    return Derived(steps, gold)


Rule = Callable[[str, str], Derived | None]
RULES: dict[str, Rule] = {
    "coin_flip": coin_flip,
    "last_letter_concatenation": last_letters,
    "tracking_shuffled_objects": shuffled_objects,
    "date_understanding": dates,
}


def more_coin_flips(questions: Sequence[str], people: int, rng: random.Random) -> str:
    """Returns a question with names that occur in `questions`."""
    names = _names(questions, r"(\w+) (?:flips|does not flip) the coin\.", people, rng)
    acts = " ".join(f"{name} {rng.choice(('flips', 'does not flip'))} the coin." for name in names)
    return f'A coin is heads up. {acts} Is the coin still heads up? Note that "flip" here means "reverse".'


def more_last_letters(questions: Sequence[str], people: int, rng: random.Random) -> str:
    """Returns a question with words that occur in `questions`."""
    names = _names(questions, r'(\w+)(?=[\w ]*" and)', people, rng)
    return f'Take the last letters of each words in "{" ".join(names)}" and concatenate them.'


def more_shuffled_objects(questions: Sequence[str], people: int, rng: random.Random) -> str:
    """Returns one of the stories of `questions` with other swaps, and another end."""
    del people  # always three
    story = rng.choice(questions)

    def swap(match: re.Match[str]) -> str:
        first, second = rng.sample(PEOPLE, 2)
        return f"{match[1]}, {first} and {second} "

    story = re.sub(r"(First|Then|Finally), \w+ and \w+ ", swap, story)
    return re.sub(r"(At the end of [\w ]+, )\w+ ", lambda match: f"{match[1]}{rng.choice(PEOPLE)} ", story)


More = Callable[[Sequence[str], int, random.Random], str]
MORE: dict[str, More] = {
    "coin_flip": more_coin_flips,
    "last_letter_concatenation": more_last_letters,
    "tracking_shuffled_objects": more_shuffled_objects,
}


def _names(questions: Sequence[str], pattern: str, count: int, rng: random.Random) -> list[str]:
    """Draws different names, each from a question drawn anew."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[rng.choice(re.findall(pattern, rng.choice(questions)))] = None
    return list(found)
