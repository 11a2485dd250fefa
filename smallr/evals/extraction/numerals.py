r"""Parses numbers as people and models write them: an exact grammar, evaluated with fractions.

    sum     = product (("+" | "-") product)*
    product = power (("*" | "/") power)*          with one "/" at most
    power   = sign? atom ("^" power)?
    atom    = "(" sum ")" | "{" sum "}" | \frac part part | \sqrt part | number fraction?
    number  = digits, in groups of three or not, with a decimal part and an exponent

`clean` brings LaTeX, Unicode and Markdown into this alphabet first. All work is linear in the text; segments are short.
"""

from __future__ import annotations

import math
import re
import unicodedata
from decimal import Decimal
from fractions import Fraction

MAX_SEGMENT = 400  # characters of a box, a statement or the end of a line that are read
MAX_DIGITS = 400  # of any number, also between steps
_DEPTH = 20

# ---- the alphabet

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+", strict=True))
_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("−‐‑‒–﹣－", "-"),
        **dict.fromkeys("×·∙⋅✕", "*"),
        **dict.fromkeys("÷⁄∕", "/"),
        **dict.fromkeys("≈≅≃", "="),
        **dict.fromkeys("€£¥₹₩₽¢", " "),
        **dict.fromkeys("\u00a0\u2002\u2003\u3000", " "),
        **dict.fromkeys("\u2009\u202f\u2006", "\\,"),
        "’": "'",
        "°": " degrees",
    }
)
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"<<[^<>]*>>", ""),  # a calculator's marks
        (r"\\!", ""),
        (r"(?<=\d)(?:\{,\}|\\[,;:]|~)(?=\d{3}(?!\d))", ","),
        (r"\{,\}", ","),
        (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle)(?![A-Za-z])", ""),
        (r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}", r"\\frac{\1}{\2}"),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\(?:times|cdot|ast)(?![A-Za-z])", "*"),
        (r"\\div(?![A-Za-z])", "/"),
        (r"\\(?:approx|simeq|cong)(?![A-Za-z])", "="),
        (r"\\(?:le|ge|leq|geq|leqslant|geqslant|ne|neq|lt|gt|pm|mp)(?![A-Za-z])", "≠"),
        (r"<=|>=|!=|[<>≤≥±∓]", "≠"),
        (r"==", "="),
        (r"\\degree(?![A-Za-z])|\^\s*\{?\s*\\circ\s*\}?", " degrees"),
        (r"\\q?quad(?![A-Za-z])|\\[,;: ()\[\]]|~", " "),
        (r"(-\s*)?(?:US)?\\?\$", r" \1"),
        (r"\\([%#&_])", r"\1"),
        (r"(?<=[\d)])\*\*(?=[\d(-])", "^"),
        (r"(?<=\d)(?!(?<=(?<![\d.,])0)[xX]) ?[xX] ?(?=\d)", "*"),  # "0x10" is no product
        (r"(?<![\w./^,\\])(?<!/ )(\d{1,9})\s{1,3}and\s{1,3}(?:a|one)\s{1,3}half\b(?!\s+of\b)", r"\1 1/2"),
        (r"(?<![\w./^,\\])(?<!/ )(\d{1,9})\s{1,3}and\s{1,3}(?=\d{1,3}/\d{1,3}(?![\d/]|[.,]\d|\s+of\b)|\\frac)", r"\1 "),
        (r"\*\*|__|[`\"“”]", ""),
        (r"-\s+(?=[\d.])", "- "),
    )
)
_WORDS = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|emph|operatorname)\s*\{([^{}]*)\}")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_SPACED_GROUPS = re.compile(r"(?<![\d.,])(\d{1,3}(?: \d{3})+)(?![\d/])(?!,\d)")


def clean(text: str) -> str:
    """Gives the text in the grammar's alphabet; words and unknown commands stay as they are."""
    if not text.isascii():
        text = _VULGAR.sub(lambda match: " " + unicodedata.normalize("NFKC", match[0]).replace("⁄", "/"), text)
        text = _RAISED.sub(lambda match: "^{" + "".join(_SUPERSCRIPTS[char] for char in match[0]) + "}", text)
        text = "".join(str(unicodedata.decimal(char)) if char.isdecimal() else char for char in text)
        text = text.translate(_CHARACTERS)
    for _ in range(3):
        text = _WORDS.sub(r" \1 ", text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text


# ---- the grammar


class NotANumber(ValueError):
    """Says that the text has no single value."""


_NUMBER = re.compile(
    r"(?:\d{1,3}(?:,\d{3})++(?!\d)|\d{1,3}(?:[_']\d{3})++(?!\d)|\d{1,2}(?:,\d{2}(?!\d))++,\d{3}(?!\d)"
    r"|\d{1,3}(?:\.\d{3}){2,}+(?!\d)|\d++)(?:\.\d++)?+|\.\d++"
)
_EXPONENT = re.compile(r"[eE]([+-]?\d++)(?![\w.])")
_SCIENTIFIC = re.compile(r"\s*+\*\s*+10\s*+\^")
_MIXED = re.compile(r"\s++(\d++)/(\d++)(?![\d/]|\.\d)|\s*+(?=\\frac)")
_SPACE = re.compile(r"\s*+")
_MALFORMED = re.compile(r"[,.:'_]\d")  # behind a number: a list, a time, a group of the wrong size


class _Parser:
    """Evaluates the grammar from one position on; `position` is then behind what was read."""

    def __init__(self, text: str, position: int = 0):
        self.text, self.position, self._depth = text, position, 0

    def peek(self) -> str:
        """Returns the next character that is no space; empty at the end."""
        self.position = _SPACE.match(self.text, self.position).end()
        return self.text[self.position : self.position + 1]

    def sum(self) -> Fraction:
        value = self.product()
        while (sign := self.peek()) in ("+", "-") and self._operand_follows():
            self.position += 1
            value += self.product() if sign == "+" else -self.product()
        return _checked(value)

    def product(self) -> Fraction:
        value, divided = self.power(), False
        while (sign := self.peek()) in ("*", "/") and self._operand_follows():
            self.position += 1
            factor = self.power()
            if sign == "/" and (divided or not factor):
                raise NotANumber
            divided |= sign == "/"
            value = _checked(value * factor if sign == "*" else value / factor)
        return value

    def power(self) -> Fraction:
        sign = 1
        while self.peek() in ("-", "+") and self.peek():
            sign = -sign if self.peek() == "-" else sign
            self.position += 1
        value = self.atom()
        if self.peek() == "^":
            self.position += 1
            self._deeper()
            exponent = self.power()
            self._depth -= 1
            if exponent.denominator != 1 or abs(exponent) > MAX_DIGITS * 4 or (not value and exponent < 0):
                raise NotANumber
            if abs(exponent) * max(_digits(value.numerator), _digits(value.denominator)) > MAX_DIGITS * 2:
                raise NotANumber
            value = value ** int(exponent)
        return _checked(sign * value)

    def literal(self) -> None:
        """Reads a number as it stands in prose: a power, a fraction, or a product with a power of ten; no sums."""
        self.power()
        if _SCIENTIFIC.match(self.text, self.position) or (self.peek() == "/" and self._operand_follows()):
            self.position = _SPACE.match(self.text, self.position).end() + 1
            self.power()

    def atom(self) -> Fraction:
        start = self.peek()
        if self.text.startswith("\\frac", self.position):
            self.position += 5
            return self._quotient(self._part(), self._part())
        if self.text.startswith("\\sqrt", self.position):
            self.position += 5
            return _root(self._part())
        if start in ("(", "{") and start:
            return self._group(")" if start == "(" else "}")
        return self._number()

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > _DEPTH:
            raise NotANumber

    def _operand_follows(self) -> bool:
        """Returns whether an operator is one: it stands before a number, not before a word."""
        rest = self.text[self.position + 1 : self.position + 12].lstrip()
        return bool(re.match(r"[-+]?\s*(?:[\d({]|\.\d|\\frac|\\sqrt)", rest))

    def _group(self, end: str) -> Fraction:
        self._deeper()
        self.position += 1
        value = self.sum()
        if self.peek() != end:
            raise NotANumber
        self.position += 1
        self._depth -= 1
        return value

    def _part(self) -> Fraction:
        """Reads a numerator or denominator: in braces, or one digit."""
        digit = self.peek()
        if digit == "{":
            return self._group("}")
        if not digit.isdigit():
            raise NotANumber
        self.position += 1
        return Fraction(int(digit))

    def _number(self) -> Fraction:
        match = _NUMBER.match(self.text, self.position)
        if not match or len(match[0]) > MAX_DIGITS:
            raise NotANumber
        literal = re.sub(r"[,_']", "", match[0])
        if literal.count(".") > 1:  # 1.000.000
            literal = literal.replace(".", "")
        self.position = match.end()
        value = Fraction(literal)
        if exponent := _EXPONENT.match(self.text, self.position):
            if len(exponent[1]) > 4 or abs(int(exponent[1])) > MAX_DIGITS:
                raise NotANumber
            self.position = exponent.end()
            return value * Fraction(10) ** int(exponent[1])
        if _MALFORMED.match(self.text, self.position):
            raise NotANumber
        return value + self._fraction() if literal.isdigit() else value

    def _fraction(self) -> Fraction:
        """Returns the fraction of a mixed number, 0 if there is none."""
        match = _MIXED.match(self.text, self.position)
        if not match:
            return Fraction(0)
        if match[1] is None:
            self.position = match.end()
            fraction = self.atom()
        else:
            fraction = self._quotient(Fraction(match[1]), Fraction(match[2]))
            self.position = match.end()
        if fraction >= 1:
            raise NotANumber
        return fraction

    @staticmethod
    def _quotient(above: Fraction, below: Fraction) -> Fraction:
        if not below:
            raise NotANumber
        return above / below


def _root(value: Fraction) -> Fraction:
    """Returns the square root of a number that is a square."""
    if value < 0:
        raise NotANumber
    root = Fraction(math.isqrt(value.numerator), math.isqrt(value.denominator))
    if root * root != value:
        raise NotANumber
    return root


def _digits(number: int) -> int:
    return abs(number).bit_length() * 3 // 10 + 1


def _checked(value: Fraction) -> Fraction:
    if max(_digits(value.numerator), _digits(value.denominator)) > 3 * MAX_DIGITS:
        raise NotANumber
    return value


# ---- what stands around a number

_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALE = re.compile(rf"\s*+({'|'.join(_SCALES)})(?:(?<=dozen)s)?\b|([kK])(?![A-Za-z])")
_START = re.compile(r"(?:[-+]\s*)?(?:[({]\s*)*+(?:[-+]\s*)?(?:\\frac|\\sqrt|\.?\d)")
_LEAD = re.compile(r"[A-Za-z\s,:;'()\[\]{}*_#.&>/-]*+")
_GLUED = re.compile(r"[A-Za-z_^\\\d]\Z")
# Words before a number after which the number is not the value.
_UNSURE = re.compile(
    r"\b(?:not|no|never|than|least|most|between|either|neither|twice|thrice|double|triple|half|halves|third|quarter|times|"
    r"minus \w|under|over|below|above|up to|within|from|one|two|three|four|five|six|seven|eight|nine|ten|sqrt|log|"
    r"mod|step|plus|range|ranges)\b|n't\b|\bcannot\b",
    re.IGNORECASE,
)
_NEGATIVE = re.compile(r"\b(?:minus|negative)\s*\Z", re.IGNORECASE)
_UNIT_POWER = re.compile(r"(?<=[A-Za-z])(?:\s?\^\s?\{?-?\d\}?|\d)(?![\d.,]\d)")
_FACTOR = re.compile(r"[({]\s*+-?\s*+(?:\.?\d|\\)")  # right behind a number
_NEXT = re.compile(r"\\frac|\d|√|π|∞")
# The word between two numbers that makes the second a circumstance of the first; "and", "or", "to", a comma do not.
_JOINT = re.compile(
    r"\b(?P<circumstance>in|for|at|after|on|of|from|with|by|over|per|within|during|because|since|as|when|if|which|that|who|"
    r"so|where|each|not|instead|rather|every|given)\b|\(|\b(?P<ambiguous>and|or|to|out|plus|minus|times|less|more|but)\b"
)
_SINGLE_UNITS = frozenset("mgLlshcpFCJNWVa")
_FUNCTIONS = {"pi", "sqrt", "ln", "log", "sin", "cos", "tan"}
_SUBORDINATE = re.compile(
    r"(?<=[\d})A-Za-z.,%])[\s,]+(?:because|since|as|which|so|where|when|if|therefore|thus|not|instead)\b|\s\((?=[^()]*[a-z=])"
)
_NAME = re.compile(r"[A-Za-z\s'\\.:,]*(?:(?<=[A-Za-z])[_(]\s*\{?[\w, ]*[})]?)?\s*")
# Numbers and what is done with them, before what that comes to.
_WORKED = re.compile(
    r"(?P<terms>(?:[\d\s.,+*/()%-]|\b(?:times|plus|minus|multiplied by|divided by)\b)+?),?\s*(?:which\s+)?"
    r"(?:equals|is equal to|comes to|gives|makes)\s+(?=[^A-Za-z]*\d)"
)
_TERMS = re.compile(r"[\d\s+*/().,%A-Za-z{}\\^-]*")
_SEVERAL = re.compile(r"\d[^=]*(?:\b(?:or|and)\b|[,;]\s*[A-Za-z])")
_VARIABLE = re.compile(r"\d\s?[a-z]\b|\b[a-z]\s*\^")


def value(text: str) -> Decimal | None:
    """Gives the value of a text that is a number and nothing else but a currency, a scale and a percent sign."""
    try:
        text = _grouped(clean(text[: 2 * MAX_DIGITS])).strip()
        parser = _Parser(text)
        found = parser.sum()
        found *= _scale(parser)
    except (NotANumber, OverflowError):
        return None
    rest = text[parser.position :].strip()
    return _decimal(found) if re.fullmatch(r"%?\.?", rest) and len(text) < 2 * MAX_DIGITS else None


def mentions_number(segment: str) -> bool:
    """Returns whether a segment has digits, or begins with a number in words."""
    return any(char.isdecimal() for char in segment) or bool(_VULGAR.search(segment)) or _in_words(segment) is not None


def find(segment: str) -> str | None:
    """Gives the number that a box or a statement comes to, as text that `value` reads; None if there is not just one.

    Of an equation it is the right side. Units and circumstances ("18 dollars a day in 3 weeks") may follow.
    """
    segment = segment[:MAX_SEGMENT]
    if not any(char.isdecimal() for char in segment) and not _VULGAR.search(segment):
        return _in_words(segment)
    text = _grouped(clean(segment))
    if (worked := _WORKED.match(text)) and re.search(r"\d\s*(?:[a-z]|[+*/-]\s*\d)", worked["terms"]):
        text = text[worked.end() :]
    if cut := _SUBORDINATE.search(text):
        text = text[: cut.start()]
    sides = [side.strip() for side in text.split("=")]
    if len(sides) > 1 and re.fullmatch(r"\s*[A-Za-z]?\s*", sides[-1]):  # 5 = x
        sides.pop()
    if not all(map(_is_left_side, sides[:-1])):
        return None
    try:
        return _of_side(sides[-1])
    except (NotANumber, OverflowError):
        return None


def _of_side(text: str) -> str:
    start = _START.search(text)
    if not start or "≠" in text[: start.start() + 1]:
        raise NotANumber
    lead = text[: start.start()]
    if not _LEAD.fullmatch(lead) or _GLUED.search(lead):
        raise NotANumber
    negative = _NEGATIVE.search(lead)
    if _UNSURE.search(lead[: negative.start()] if negative else lead):
        raise NotANumber
    parser = _Parser(text, start.start())
    parser.sum()
    _scale(parser)
    _check_rest(text[parser.position :])
    found = text[start.start() : parser.position].strip()
    return f"-({found})" if negative else found


def _check_rest(rest: str) -> None:
    """Refuses what makes a number another one, or one of several."""
    if _FACTOR.match(rest):
        raise NotANumber
    rest = rest.lstrip(" %")
    letters = re.match(r"[A-Za-z]+", rest)
    if letters and (letters[0] in _FUNCTIONS or (len(letters[0]) == 1 and letters[0] not in _SINGLE_UNITS)):
        raise NotANumber
    rest = _UNIT_POWER.sub("", rest)
    if re.match(r"[\\^*!√π]|\+\s*\w", rest) or "≠" in rest:
        raise NotANumber
    if following := _NEXT.search(rest):
        joint = _JOINT.search(rest[: following.start()].lower())
        if not joint or joint["ambiguous"]:
            raise NotANumber


def _is_left_side(text: str) -> bool:
    """Returns whether the left side of an equation is a name, or numbers to be reckoned with."""
    if "≠" in text or _UNSURE.search(text.replace("\\sqrt", "")) or _SEVERAL.search(text):
        return False
    return bool(_NAME.fullmatch(text)) or (bool(_TERMS.fullmatch(text)) and not _VARIABLE.search(text))


def _scale(parser: _Parser) -> int:
    match = _SCALE.match(parser.text, parser.position)
    if not match:
        return 1
    parser.position = match.end()
    return _SCALES[match[1]] if match[1] else 1000


def _grouped(text: str) -> str:
    """Groups of three digits between spaces become groups between commas."""
    return _SPACED_GROUPS.sub(lambda match: match[1].replace(" ", ","), text)


def _decimal(value: Fraction) -> Decimal:
    number = Decimal(value.numerator)  # exactly; a division rounds
    return number if value.denominator == 1 else (number / Decimal(value.denominator)).normalize() + 0


# ---- numbers in words

_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = (
    "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
)  # fmt: skip
_UNITS = {word: value for value, word in enumerate(_ONES)} | {
    word: 10 * value for value, word in enumerate(_TENS, start=2)
}
_IN_WORDS = re.compile(
    r"[\s*_:\"'(]*(?:(?:about|exactly|approximately|only|just)\s+)?"
    rf"((?:{'|'.join(_UNITS)})(?:[\s-]+(?:{'|'.join((*_UNITS, *_SCALES, 'and'))}))*)(?![\w-])(.*)",
    re.IGNORECASE | re.DOTALL,
)
_WORD = re.compile(rf"\b(?:{'|'.join((*_UNITS, *_SCALES))}|half|third|quarter|fifth)s?\b", re.IGNORECASE)


def _in_words(segment: str) -> str | None:
    """Gives the number with which a segment begins in words, as digits; None if there is none, or another follows."""
    match = _IN_WORDS.match(clean(segment[:MAX_SEGMENT]))
    if not match or _WORD.search(match[2]):
        return None
    words = re.split(r"[\s-]+", match[1].lower())
    if words[-1] == "and" or (words == ["one"] and re.match(r"\s*[A-Za-z]", match[2])):
        return None
    total = group = 0
    previous = 10**15
    for word in words:
        if word == "and":
            continue
        if word in _SCALES:
            if not group and not total:
                return None
            group = group * 100 if word == "hundred" else group
            if word != "hundred":
                total, group = total + group * _SCALES[word], 0
            previous = 10**15
            continue
        if _UNITS[word] >= 10 > previous or (_UNITS[word] < 20 and previous < 20):
            return None  # "five six"
        group, previous = group + _UNITS[word], _UNITS[word]
    return str(total + group)


# ---- the last number of a text

_ANY_START = re.compile(r"\\frac|\.?\d")
_LINE = 2000  # characters of the end of a line that are searched
_RUN = re.compile(r"[\w.,^*{}\\/:']*")  # all of a malformed number
_SIGN = re.compile(r"(?:^\s*|[^\w)%\]}\s]\s*|[A-Za-z]\s+)-\Z|[:=(]\s*-\s+\Z")  # a minus with nothing to subtract from


def last(text: str) -> str | None:
    """Gives the last number of a text, as text that `value` reads; None if it is malformed or there is none."""
    for line in reversed(text.splitlines()):
        if not any(char.isdecimal() for char in line) and not _VULGAR.search(line):
            continue
        for found in reversed(_numbers(clean(line[-_LINE:]))):
            if found != "":
                return found
    return None


def _numbers(line: str) -> list[str | None]:
    """Returns the numbers of a line in order; None for a malformed one, empty for digits that are part of a name."""
    found: list[str | None] = []
    position = 0
    while start := _ANY_START.search(line, position):
        text, position = _number_at(line, start.start())
        found.append(text)
    return found


def _number_at(line: str, start: int) -> tuple[str | None, int]:
    """Returns what `_numbers` says of the number at `start`, and where to go on."""
    parser = _Parser(line, start)
    try:
        parser.literal()
    except (NotANumber, OverflowError):
        return None, max(_RUN.match(line, start).end(), start + 1)
    parser.position = len(line[: parser.position].rstrip())
    _scale(parser)
    end, before = parser.position, line[max(start - 20, 0) : start]
    if _MALFORMED.match(line, end) or line.startswith("^", end) or re.search(r"\d[:,/^]\Z", before):
        return None, end
    letters = re.match(r"[A-Za-z]+", line[end : end + 20])
    if re.search(r"(?:sqrt|log|ln|sin|cos|tan)\s*[{(]?\s*\Z", before):
        return None, end
    if re.search(r"[A-Za-z](?:\s?\^\s?\{?-?)?\Z|[_\\]\Z", before) or (letters and not _is_unit(letters[0])):
        return "", end
    return ("-" if _SIGN.search(before) else "") + line[start:end], end


def _is_unit(letters: str) -> bool:
    return letters not in _FUNCTIONS and (len(letters) > 1 or letters in _SINGLE_UNITS)
