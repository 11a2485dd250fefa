"""Extracts the option, or the word of a few, that a text decides for."""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Callable, Mapping, Sequence

from smallr.evals.extraction import numerals
from smallr.evals.extraction.places import MAX_SENTENCE, affirmed, answer_part, boxed, statements

_MARKUP = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|boxed)\s*\{([^{}]*)\}")
_DECORATION = re.compile(r"\*\*|__|[*_`\"“”$]|\\[()\[\]]|(?<!\w)['‘’]|['‘’](?!\w)")
# What may stand between "the answer is" and a letter.
_HEAD = re.compile(
    r"(?:\s|:|the\b|correct\b|right\b|best\b|options?\b|choices?\b|letters?\b|answers?\b|therefore\b|thus\b|clearly\b|"
    r"definitely\b|probably\b|most\b|likely\b|indeed\b|obviously\b|to\b|be\b|is\b|indicated\b|by\b|,)*+",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"\s*(?:definitely|certainly|clearly|probably)?\s*(?:not|n't|neither|never|either|both|none)\b", re.IGNORECASE
)
_AFTER_ARTICLE = (
    r"(?=\s*(?:\Z|[^\sa-z])|\s+(?:is|because|since|as|and|or|nor|but|not|which|with|due|based|given|for)\b)"
)
_CONNECTED = r"\s*(?i:,|and|or|nor|/|&|\+|-|,\s*and|,\s*or)\s*(?i:options?|choices?)?"
_IS_RIGHT = (
    r"(?i:\s+(?:is|seems|looks|must be|would be|has to be|should be)\s+(?:clearly |indeed |therefore |definitely )?"
    r"(?:the\s+)?(?:(?:most|only|one)\s+)?(?:right|correct|best|true|accurate|appropriate|answer|valid)\b(?!\s+(?:only|if)))"
)
_PICK = (
    r"(?i:\b(?:go(?:ing)? with|choos(?:e|ing)|chose|pick(?:ed)?|select(?:ed)?|settle on|opt for)\s+"
    r"(?:(?:the|option|choice|answer|letter)\s+)*)"
)
_OPEN, _CLOSE = r"[\s(\[{]*", r"[)\]}.:]*"
_WRONG = re.compile(
    r"\b(?:not|wrong|incorrect|false|invalid|eliminated?|excluded?|out|cannot|neither|unlikely)\b|n't\b", re.IGNORECASE
)
_IS_WRONG = re.compile(
    r"[\W]*(?:is|are|was|seems|looks|would be|can|could|does|do|must|should)?\s*(?:clearly |also |obviously |the )?"
    r"(?:not\b|n't\b|cannot\b|wrong|incorrect|false|invalid|eliminated|excluded|out\b|unlikely)|.{0,12}n't\b",
    re.IGNORECASE,
)
_DOUBT = re.compile(r"\b(?:if|unless|maybe|perhaps|might|may|could|either|or)\b", re.IGNORECASE)
_CONCLUSION = re.compile(
    rf"(?:(?:so|thus|hence|therefore|finally|it is|it's|must be|that is|my (?:final )?(?:choice|pick|guess|selection))\b"
    rf"[\s,:]*)*+{_HEAD.pattern}",
    re.IGNORECASE,
)
_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # full width -> ASCII
_LINE = 1000  # characters of a line that are read


class _Options:
    """Matches the letters of a question's options."""

    def __init__(self, letters: str, texts: Mapping[str, str]):
        upper, lower = re.escape(letters), re.escape(letters.lower())
        plain, articles = ("".join(letter for letter in letters if (letter in "AI") is kind) for kind in (False, True))
        # A capital, where "A" and "I" may be words; a small letter only before the end or punctuation.
        kinds = [rf"[{plain}](?![\w'’])"] if plain else []
        kinds += [rf"[{articles}](?![\w'’]){_AFTER_ARTICLE}"] if articles else []
        one = rf"(?P<letter>{'|'.join(kinds)}|[{lower}](?=\s*\Z|[)\].,:;!?\n]))"
        named = rf"(?i:\b(?:option|choice))\s+\(?(?P<letter>[{upper}{lower}])\b\)?"
        bare = rf"(?P<bare>\([{upper}{lower}]\)|(?<![\w'’])[{upper}]\b)"
        self.letter = re.compile(rf"{_OPEN}{one}")
        self.another = re.compile(rf"{_CLOSE}{_CONNECTED}{_OPEN}{one}(?!\s+(?i:is|was)\b)")
        self.right = re.compile(rf"(?:{named}|{bare}){_IS_RIGHT}")
        self.picked = re.compile(rf"(?P<before>.{{0,20}}){_PICK}{_OPEN}{one}")
        self.concluded = re.compile(named)
        small = rf"(?<=\()[{lower}](?=\))|[{lower}](?=\W*\Z)"
        self.line = re.compile(rf"\W*?(?P<letter>[{upper}]|{small})(?P<mark>[)\]}}.:]*)\s*(?P<rest>.*)", re.DOTALL)
        self.bracketed = re.compile(rf"\(([{upper}])\)")
        # Not "I", with which a sentence that was cut off may end.
        letter = rf"(?:options?\s+|choice\s+)?(?:\((?P<bracketed>[{upper}])\)|(?P<plain>[{upper.replace('I', '')}]))(?=\W*\Z)"
        it_is = r"(?:(?:it|this|that|the answer)\s+(?:is|must\s+be|has\s+to\s+be|should\s+be)\s+|it's\s+)"
        self.closing = re.compile(
            rf"(?:(?:^\W*|[,;:–—-]\s*|\band\s+)(?i:so|thus|therefore|hence)\b[\s,]+{it_is}?|^\W*(?i:it must be)\s+){letter}"
        )
        self.whole = re.compile(rf"\W*{letter}\W*")
        self.kind = rf"[{upper}](?![\w'’])"
        self.texts = {letter: _normal(text) for letter, text in texts.items() if letter in letters}
        self.values = {letter: numerals.value(text) for letter, text in texts.items() if letter in letters}

    def of_text(self, segment: str) -> str | None:
        """Returns the only option whose text this is."""
        segment = segment.strip().rstrip(".!").strip()
        if not segment or len(segment) > _LINE:
            return None
        plain = _normal(segment)
        found = [letter for letter, text in self.texts.items() if text and text == plain]
        if not found and (value := numerals.value(segment)) is not None:
            found = [letter for letter, other in self.values.items() if other == value]
        return found[0] if len(found) == 1 else None


def option(letters: str = "ABCDE", texts: Mapping[str, str] | None = None) -> Callable[[str], str | None]:
    """Extracts the letter of an option: boxed, stated, called right, or alone on the last or the first line.

    Args:
      letters: of the options.
      texts: letter -> text of the option, which is an answer too.
    """

    def extract(text: str) -> str | None:
        options, text = _Options(letters, texts or {}), answer_part(text).translate(_WIDE)
        box = boxed(text)
        places = [*([box] if box else []), *reversed(statements(text))]
        for place in places:
            found, decided = _stated_letter(place, options)
            if decided:
                return found
        if found := _called_right(text, options):
            return found
        lines = [_plain(line.strip()[:_LINE]) for line in text.strip().splitlines() if line.strip()]
        if _lists_options(lines, options):
            return None
        return _on_a_line(lines, options) or _in_last_clause(text, options) or _at_the_end(text, options)

    return extract


def _stated_letter(place: str, options: _Options) -> tuple[str | None, bool]:
    """Returns the letter at the beginning of a box or a statement, and whether the place decides; it does by a denial as well."""
    place = affirmed(_plain(place), options.kind)
    if _DENIED.match(place):
        return None, True
    start = _HEAD.match(place).end()
    if _DENIED.match(place, start):
        return None, True
    match = options.letter.match(place, start)
    if not match:
        found = options.of_text(place) or options.of_text(place[start:])
        return found, found is not None
    second = options.another.match(place, match.end())
    if second and second["letter"].upper() != match["letter"].upper():
        return None, True
    return match["letter"].upper(), True


def _called_right(text: str, options: _Options) -> str | None:
    """Returns the option that the last sentence which judges one calls right or picks."""
    found = []
    for pattern in (options.right, options.picked):
        for match in pattern.finditer(text):
            groups = match.groupdict()
            if not re.search(r"\b(?:not|never|cannot)\b|n't\b", groups.get("before") or "", re.IGNORECASE):
                found.append((match.end(), (groups["letter"] or groups["bare"].strip("()")).upper()))
    if found:
        return max(found)[1]
    for sentence in reversed(re.split(r"[.!?\n]\s*", text[-2 * _LINE :])):
        letters = {match["letter"].upper() for match in options.concluded.finditer(sentence)}
        if letters:
            sure = re.search(r"\b(?:so|thus|therefore|hence|leaves|must be|it is|it's)\b", sentence, re.IGNORECASE)
            return letters.pop() if len(letters) == 1 and sure and not _WRONG.search(sentence) else None
    return None


def _lists_options(lines: Sequence[str], options: _Options) -> bool:
    """Returns whether the last lines repeat the question's options."""
    found = [match for line in lines[-10:] if (match := options.line.match(line)) and match["mark"] and match["rest"]]
    return len({match["letter"].upper() for match in found}) > 1


def _on_a_line(lines: Sequence[str], options: _Options) -> str | None:
    """Returns the letter that the last line or the first begins with."""
    for line in [*lines[-1:], *lines[:1]]:
        match = options.line.match(line)
        if match and (match["mark"] or not match["rest"]) and "?" not in line and not _IS_WRONG.match(match["rest"]):
            return match["letter"].upper()
        alone = options.letter.match(line, _CONCLUSION.match(line).end())
        if alone and not line[alone.end() :].strip(" )]}.:!"):
            return alone["letter"].upper()
        if found := options.of_text(line):
            return found
    return None


def _in_last_clause(text: str, options: _Options) -> str | None:
    """Returns the only letter in brackets of the last clause."""
    clauses = [clause for clause in re.split(r"[.;!?\n]", text[-_LINE:]) if clause.strip()]
    found = set(options.bracketed.findall(clauses[-1])) if clauses else set()
    return found.pop() if len(found) == 1 and not _WRONG.search(clauses[-1]) else None


def _at_the_end(text: str, options: _Options) -> str | None:
    """Returns the letter with which the last sentence ends behind "so" or "not … but"."""
    sentence = _plain(re.split(r"(?<=[.;!?])\s+|\n", text[-_LINE:].strip())[-1])
    if "?" in sentence or _DOUBT.search(sentence):
        return None
    rest = affirmed(sentence, options.kind)
    found = options.closing.search(sentence) if rest is sentence else options.whole.fullmatch(rest)
    return next((letter for letter in found.groups() if letter), None) if found else None


def _plain(text: str) -> str:
    """Returns a text without LaTeX's and Markdown's marks."""
    for _ in range(2):
        text = _MARKUP.sub(r"\1", text)
    return _DECORATION.sub("", text).strip()


def _normal(text: str) -> str:
    """Lowers case, and drops articles, punctuation at the ends and LaTeX spaces."""
    text = (
        re.sub(r"\\[,;:! ]|\s+", " ", _plain(text))
        .lower()
        .strip(string.punctuation.replace("-", "").replace("%", "") + " ")
    )
    return re.sub(r"^(?:an?|the)\s+", "", text)


# ---- words

_ALSO = {"nope": "no", "yep": "yes"}
_NUMBER_SIGN = re.compile(r"\bNo\.\s*+(?=\d)")
_NOT = re.compile(r"\b(?:not|neither|never|either)\b|n't\b", re.IGNORECASE)


class _Words:
    """Matches a few words."""

    def __init__(self, words: Sequence[str]):
        self.meanings = {other: word for other, word in _ALSO.items() if word in words}
        self.token = rf"(?<![\w-])({'|'.join(map(re.escape, (*words, *self.meanings)))})(?![\w'’-])"
        # "no" is also an article: a word counts where a clause ends behind it, or the next one begins.
        clause = r"because|since|as|it|he|she|they|this|that|the|there|not|we|you|or|and"
        alone = rf"{self.token}(?=[\s*_\"'”)]*(?:\Z|[.,;:!/)\]}}\n])|\s+(?:{clause})\b)"
        self.alone = re.compile(alone, re.IGNORECASE)
        self.second = re.compile(rf"[\s*_\"'”]*(?:or|and|/)\s+{self.token}", re.IGNORECASE)
        self.whole = re.compile(rf"\W*{self.token}\W*\Z", re.IGNORECASE)
        conclusion = r"so|thus|therefore|hence|then|overall|in conclusion|finally|ultimately"
        self.final = re.compile(rf"\W*(?:{conclusion})\b.{{0,80}}?{alone}", re.IGNORECASE)
        self.opening = re.compile(rf"\W{{0,20}}{self.token}(?=[\s*_\"'”)]*(?:[.,;:!\n–—]|\Z))", re.IGNORECASE)
        self.dashed = re.compile(rf"\W{{0,10}}{self.token}\s*(?:[–—]|-\s)", re.IGNORECASE)
        self.last = re.compile(rf"{self.token}\W*\Z", re.IGNORECASE)

    def word(self, match: re.Match[str]) -> str:
        """Returns which of the words a match has found."""
        return self.meanings.get(match[1].lower(), match[1].lower())


_patterns = functools.lru_cache(64)(_Words)


def word(words: Sequence[str]) -> Callable[[str], str | None]:
    """Extracts one of some words, in lower case: boxed, stated, concluded in the last sentence, or said at once."""
    words = tuple(words)

    def extract(text: str) -> str | None:
        patterns, text = _patterns(words), _NUMBER_SIGN.sub("number ", answer_part(text))
        box = boxed(text)
        for place in [*([box] if box else []), *reversed(statements(text))]:
            found, decided = _stated_word(_plain(place), patterns)
            if decided:
                return found
        return _said_word(text.strip(), patterns)

    return extract


def _stated_word(place: str, patterns: _Words) -> tuple[str | None, bool]:
    """Returns the word in a box or a statement, and whether the place decides; it does by a denial as well."""
    match = patterns.dashed.match(place) or patterns.alone.search(place)
    if not match:
        return None, False
    denied = _NOT.search(place[: match.start()]) or patterns.second.match(place, match.end())
    return None if denied else patterns.word(match), True


def _said_word(text: str, patterns: _Words) -> str | None:
    """Returns the word that is all of the last sentence, its conclusion, the text's beginning, or the sentence's last word."""
    sentences = [part for part in re.split(r"(?<=[.!?])\s+|\n+", text[-_LINE:]) if part.strip()]
    end = _plain(sentences[-1][-MAX_SENTENCE:]) if sentences else ""
    for pattern, place in ((patterns.whole, end), (patterns.final, end), (patterns.opening, text[:MAX_SENTENCE])):
        match = pattern.match(place)
        if match and not (pattern is patterns.final and (_NOT.search(match[0]) or "?" in place)):
            return patterns.word(match)
    match = patterns.last.search(end)
    alone = {found.lower() for found in patterns.alone.findall(end)}
    return patterns.word(match) if match and len(alone) == 1 and "?" not in end and not _NOT.search(end) else None
