"""Where answers stand in texts."""

from __future__ import annotations

import pytest

from smallr.core.errors import UserError
from smallr.evals.trust.answers import extractor, locate

GSM8K = [
    (r"6 apples and 36 pears. The answer is \boxed{42}. So 42.", "42", 44),
    ("She pays 18, then 18 more.\n#### 18", "18", 32),
    ("The answer is $1,234.50 in 3 weeks", "1234.50", 15),
    ("we get 10 + 8 = 18", "18", 16),
    (r"so \boxed{\frac{1}{2}}", "0.5", 10),
    ("word9 59 59 73 word4 5", "5", 21),  # numbers side by side, and digits of names
    ("12 + 34 - 4 = 42, minus 4", "4", 24),
    ("it fell to -4", "-4", 11),
    ("all in all 12,345.5 kg", "12345.5", 11),
    ("<think>maybe 7</think>It is 7.", "7", 28),
]


@pytest.mark.parametrize(("text", "value", "start"), GSM8K)
def test_numbers(text, value, start):
    extract, _ = extractor("gsm8k")
    (answer,) = extract([text])
    assert answer.span[0] == start
    assert locate(text, answer.value) == answer.span
    assert float(answer.value) == pytest.approx(float(value))


def test_options_words_and_texts():
    text = "A dog is no answer. The answer is (B), not A."
    first, last = extractor("date_understanding")[0]([text])[0].span
    assert (text[first:last], first) == ("B", 35)
    text = "Yes or no? The coin is flipped, so the answer is no."
    first, last = extractor("coin_flip")[0]([text])[0].span
    assert (text[first:last], first) == ("no", len(text) - 3)
    text = "Take the last letters.\nThe answer is “The Big Dog”."
    first, last = extractor("text")[0]([text])[0].span
    assert text[first:last] == "The Big Dog"
    assert extractor("all")[0]([" a b ", ""])[0].span == (0, 5)
    assert extractor("all")[0](["", "x"])[0] is None


def test_what_cannot_be_located_is_the_whole_text_and_what_is_no_answer_is_none():
    answer, none = extractor("gsm8k")[0](["The answer is forty two.", "I cannot say."])
    assert (answer.value, answer.span) == ("42", (0, 24))
    assert none is None


@pytest.mark.parametrize(
    ("name", "message"), [("piqa", "by likelihood"), ("humaneval", "a program"), ("nothing", "not known")]
)
def test_benchmarks_without_an_answer_in_a_text_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        extractor(name)
