"""Answers in all the forms in which models write them, and forms that are no answer, or another one."""

from __future__ import annotations

import random
import time
from fractions import Fraction

import pytest

from smallr.evals import extraction
from smallr.evals.extraction import numerals
from smallr.evals.graders import matching
from smallr.evals.graders.base import Job

# --- numbers: text -> the value that it has; None: no single value

NUMBERS = {
    # signs, decimals, separators
    "42": 42, "+42": 42, "-42": -42, "−42": -42, "–42": -42, "- 42": -42, "042": 42, "3.50": 3.5, ".5": 0.5, "-.5": -0.5,
    "5.": 5, "1,234": 1234, "1,234,567.25": 1234567.25, "12,34,567": 1234567, "1 234": 1234, "1 234 567": 1234567,
    "1'234": 1234, "1_234": 1234, "1.234.567": 1234567, "1\u202f234": 1234, "1\u00a0234": 1234, r"1{,}234": 1234,
    r"1\,234": 1234, r"1\;234": 1234, r"1\ 234": 1234, r"1,\!234": 1234, r"1~234": 1234, r"12{,}345{,}678": 12345678,
    "４２": 42, "٤٢": 42,
    # currency, percent, units
    "$5": 5, "-$5": -5, "$-5": -5, r"\$5.25": 5.25, "€5": 5, "£1,000": 1000, "US$5": 5, "$1{,}000$": 1000, "50%": 50,
    r"50\%": 50, "50 %": 50, "$1.5 million": 1500000, "5 thousand": 5000, "5k": 5000, "2.5 billion": 2.5e9,
    # fractions, mixed numbers
    "3/4": 0.75, "-3/4": -0.75, r"\frac{3}{4}": 0.75, r"\dfrac{3}{4}": 0.75, r"\tfrac34": 0.75, r"-\frac{1}{2}": -0.5,
    r"\frac{-1}{2}": -0.5, r"{3 \over 4}": 0.75, "½": 0.5, "2½": 2.5, "2 1/2": 2.5, "-2 1/2": -2.5, r"2\frac{1}{2}": 2.5,
    r"2 \frac12": 2.5, "3⁄4": 0.75, r"3 \div 4": 0.75, r"\frac{10+8}{2}": 9, r"\frac{1{,}000}{4}": 250, "(3/4)": 0.75,
    "2 and a half": 2.5, "3 and 1/2": 3.5, r"3 and \frac{1}{2}": 3.5, r"3 \text{ and } \frac12": 3.5,
    "3 dozen": 36, "1/2 dozen": 6, "2 dozens": 24, r"\sqrt{16}": 4, r"\sqrt9": 3, r"\sqrt{\frac{1}{4}}": 0.5,
    r"2 + \sqrt{16}": 6,
    # powers and exponents
    "2^3": 8, "2**3": 8, "2³": 8, "2^{3}": 8, "10^{-2}": 0.01, "10⁻²": 0.01, "(1/2)^2": 0.25, "-2^2": -4, "5e3": 5000,
    "5E3": 5000, "1.5e-2": 0.015, "3 × 10^4": 30000, r"3 \times 10^{4}": 30000, "3*10^4": 30000, "3x10^4": 30000,
    r"6.02 \cdot 10^{3}": 6020,
    # sums
    "10+8": 18, "10 - 8": 2, "2*3+4": 10, "(1+2)*3": 9,
}  # fmt: skip
NO_NUMBERS = [
    "", "abc", "1,5", "1,2345", "12,34", "1,23,4", "3:4", "3:30", "1.2.3", "3/4/2020", "5/0", r"\frac{1}{0}",
    "9**9**9**9",
    "2^999999", "1e99999999999", "5x", "5!", "x", "3, 5", "3 or 4", "[3, 5]", r"\sqrt{2}", r"\sqrt{-4}",
    r"5\sqrt{4}", r"\sqrt{\frac{1}{2}}", "0x10", r"5\pi", "0^{-1}", "--",
    "1/", "((1)",
    "1 23 456", "NaN", "inf", "5 apples",
]  # fmt: skip


def test_numbers_have_their_values():
    for text, value in NUMBERS.items():
        found = numerals.value(text)
        assert found is not None, text
        assert abs(float(found) - value) < 1e-9, (text, found)
    for text in NO_NUMBERS:
        assert numerals.value(text) is None, text


def test_numbers_in_boxes_in_statements_and_behind_the_mark():
    wrong = []
    for text, value in NUMBERS.items():
        for output in (rf"so \boxed{{{text}}}", f"The answer is {text}.", f"#### {text}"):
            (verdict,) = matching.numbers().grade([Job(output, str(value))])
            wrong += [] if verdict.correct else [(output, verdict)]
    assert wrong == []


# output -> the number that it comes to
OUTPUTS = {
    "so 3 + 4 = 7\n#### 7": "7",
    "The total is $1,234.50.": "1234.5",
    r"thus \boxed{42}, not 41": "42",
    "The answer is 12. I checked 3 times.": "12",
    "answer: −5": "-5",
    "A: 18": "18",
    "**Answer:** 18": "18",
    "**Answer**: 18 eggs": "18",
    "Final answer: **18**": "18",
    "### Final Answer\n\n18": "18",
    "**Final Answer**\n$$\n18\n$$": "18",
    "The final answer is: $18$.": "18",
    r"The answer is \(18\).": "18",
    "The answer is therefore 18.": "18",
    "The answer is x = 18.": "18",
    "The answer is that Tom has 18 apples.": "18",
    "The answer is about 18 dollars.": "18",
    "The answer is 18 because 3*6 = 18 and 4 are left.": "18",
    "The answer is 18, not 20.": "18",
    "The answer is 18 dollars in 3 days.": "18",
    "The answer is 18 (3 each).": "18",
    "The answer is 5!": "5",
    "The answer is minus 5.": "-5",
    "The answer is negative 5.": "-5",
    "The answer is twelve.": "12",
    "The answer is twenty-five apples.": "25",
    "The answer is two hundred and six.": "206",
    "The answer is 3 thousand.": "3000",
    "The answer is 10 + 8 = 18": "18",
    "The answer is not 5. The answer is 6.": "6",
    "The answer would be 18.": "18",
    "The answer comes to 18.": "18",
    r"\boxed{10+8=18}": "18",
    r"\boxed{x = 18}": "18",
    r"\boxed{18 = x}": "18",
    r"\boxed{18 \text{ dollars}}": "18",
    r"\boxed{\text{Total: } 18}": "18",
    r"\boxed{\$18}": "18",
    r"\boxed{18\%}": "18",
    r"\boxed{18 \text{ cm}^2}": "18",
    r"\boxed{18\,\mathrm{m/s}}": "18",
    r"\boxed{18^\circ}": "18",
    r"\boxed{\textbf{18}}": "18",
    r"\boxed{\approx 3.14}": "3.14",
    r"\fbox{18}": "18",
    r"\boxed {18}": "18",
    r"\boxed 18": "18",
    "\x08oxed{18}": "18",
    r"\boxed{\boxed{\boxed{8}}}": "8",
    r"first \boxed{3}, finally \boxed{4}": "4",
    r"\boxed{18} and an open \boxed{19": "18",
    "#### 5 apples + 3 apples = 8 apples": "8",
    "#### 10 + 8 = 18": "18",
    "#### $18": "18",
    "#### 18 dollars": "18",
    "#### 72\n\nNext question: 2+3?\n#### 5": "72",
    "#### 72\n\nQuestion: 2+3?\nThe answer is 5.": "72",
    "The answer is 72.\n\nQuestion: What is 2+3?\nThe answer is 5.": "72",
    "\\boxed{72}\n\nHuman: and 2+3?\n\\boxed{5}": "72",
    "#### Step 1\n3 * 4 = 12\n#### Step 2\n\\boxed{13}": "13",
    "#### 1. Count the 4 eggs\n#### 2. Sum\n\\boxed{13}": "13",
    "Question: what is 6*7?\nThe answer is 42.": "42",
    "<think>the answer is 3</think> The answer is 4": "4",
    "She has <<3+4=7>>7": "7",
    "so x = -3": "-3",
    "10 - 4 = 6": "6",
    "It costs -$5": "-5",
    "-$2,979.62": "-2979.62",
    r"-\$5": "-5",
    "from 10-4": "4",
    "- 4 apples": "4",
    "about 1/3 of it": "0.3333333333333333333333333333",
    "half of it, 2 1/2": "2.5",
    "3 of the H2O": "3",
    "it takes 7 days": "7",
    "in step7 there are 6": "6",
    "51": "51",
    "3 dozen eggs": "36",
    "So it takes 3 and 1/2.": "3.5",
    "The answer is two dozen.": "24",
    "The answer is 2 and a half hours.": "2.5",
    "so it takes 3 and a half hours": "3.5",
    "The answer is not 5, it is 6": "6",
    "The answer is not 5 but 6.": "6",
    "The answer isn't 5, it's 6.": "6",
    "The answer is not 1,500 but $1,600.": "1600",
    "not 5 but 6.": "6",
    "10 times 8, which equals 80": "80",
    "The answer is 10 times 8, which equals 80.": "80",
    "The answer is 18, which equals 3 times 6.": "18",
    r"\boxed{\sqrt{16} = 4}": "4",
    "1" + "0" * 40: "1" + "0" * 40,
}  # fmt: skip
# No single number is given: nothing may be guessed.
NO_OUTPUTS = [
    "", "no idea", "The answer is not 5.", "The answer isn't 5.", "The answer is 3 or 4.", "The answer is 3 and 4.",
    "The answer is between 3 and 5.", "The answer is at least 5.", "The answer is more than 5.", "The answer is 3 to 4.",
    "The answer is 3:4.", "The answer is 3, 4.", "The answer is 5 hours and 30 minutes.", "The answer is 3 ± 1.",
    "The answer is > 5.", "The answer is half of 10.", "The answer is twice 5.", "The answer is 5x.",
    "The answer is 5 x + 3.",
    "The answers are 3 and 4.", "The answer is five or six.", "The answer is one of them, 5 maybe.",
    "The answer is 3 out of 5.",
    r"\boxed{x > 5}", r"\boxed{x \ge 5}", r"\boxed{3, 5}", r"\boxed{[3,5]}", r"\boxed{5x}", r"\boxed{5\sqrt{2}}",
    r"\boxed{5\pi}",
    r"\boxed{5!}", r"\boxed{\pm 5}", r"\boxed{3:4}", r"\boxed{1,5}", r"\boxed{5 \text{ or } 6}", r"\boxed{x^2}",
    r"\boxed{\text{yes}} 5",
    r"\boxed{x_1 = 3, x_2 = 4}", r"\boxed{3x + 2 = 8}", r"\boxed{\log 5}", r"\boxed{A5}", "#### 3 or 4", "at 3:30",
    "on 1,5", "The answer is not 5, but close.", "The answer is not 5, but it was close to 5.", "The answer is not 5 but 6 or 7.",
    "The answer is not certain, but 5 may be.", "0x10", "The answer is 0x10.", "The answer is 1/3 and 1/2.",
    "The answer is 3 and 3/2.", "The answer is 2.5 and 1/2.", "The answer is 3 and 1/2 of them.", "The answer is 3 dozen and 4.",
    "1e99999999999", "9**9**9**9",
]  # fmt: skip

MORE_OUTPUTS = {
    '\\boxed{1.5 \\times 10^3}': '1500', '\\boxed{2\\,1/2}': '2.5', '#### 1,234 dollars': '1234',
    'The answer is 5 1/2 hours': '5.5', 'The answer is 1/2 of the cake': '.5', 'The answer is **$18** per day': '18',
    'The answer is $$18$$': '18', 'The answer is $\\boxed{18}$': '18', 'The answer is 3.14...': '3.14',
    'Total = 5 + 3 = 8 apples': '8', 'The final answer is 18. I hope it is correct.': '18',
    'The answer is 18 dollars, which is 3 more than 15.': '18', 'So 18 eggs left. #### 18': '18', '####18': '18',
    '#### -5': '-5', '#### 3/4': '.75', '#### \\frac{3}{4}': '.75', '#### 2 1/2': '2.5', '#### 1.5e3': '1500',
    '####\n18': '18', '**#### 18**': '18', '\\boxed{18}$ dollars': '18', '\\boxed{\\text{18 dollars}}': '18',
    '\\boxed{\\$ 1,250.00}': '1250', '\\boxed{5 \\frac{1}{2} \\text{ hours}}': '5.5', 'The answer is zero.': '0',
    'The answer is 20 percent': '20', 'The answer is 18 ✅': '18', 'The answer is 18°C': '18',
    'Answer: 18 (eighteen)': '18', 'The answer is 2^10 = 1024': '1024', 'The answer is 12 / 4 = 3': '3',
    'The answer is 3/4 * 100 = 75%': '75', '\\boxed{\\frac{3}{4} = 0.75}': '.75', '\\boxed{18.}': '18',
    '\\boxed{18\\text{th}}': '18', '\\boxed{5\\times4}': '20', '\\boxed{\\left(\\frac{1}{2}\\right)^3}': '0.125',
    '\\boxed{\\text{\\$18}}': '18', 'The answer is 5 dozen': '60', 'The answer is 1 000 000': '1000000',
    'answer = 18': '18', 'Answer - 18': '18', 'The answer is - 18': '-18',
    'The answer should be 18 apples and not 19': '18', 'the answer is 42\n\n\n': '42',
    'The answer is 1,000 or so.': '1000', 'The answer is $12.50/hour.': '12.5', 'The answer is 60 km/h.': '60',
    'The answer is 3 m^2.': '3', 'So there are 1,250 people.': '1250', 'so 3×4=12': '12',
    'The answer is 18 = 18.': '18', 'The answer is (18).': '18', 'The answer is [18].': '18',
    'The answer is {18}.': '18', 'The answer is ~18.': '18', 'The answer is 18+.': '18', 'The answer is 5 + 3.': '8',
    'The answer is 18%.': '18', 'The answer is 18 %.': '18', 'The answer is \\$18.': '18',
    'The answer is $\\$18$.': '18', 'The answer is 18\\%.': '18', 'The answer is ten thousand.': '10000',
    '\\boxed{eighteen}': '18', '\\boxed{90 \\text{ minutes}} = 1.5 hours': '90', 'The answer is #18.': '18',
    'Total: $3 million': '3000000', 'answer: 07': '7',
}  # fmt: skip
NO_OUTPUTS += [
    '\\boxed{18\\text{ eggs}, 3 \\text{ left}}', '\\boxed{8:30}', '\\boxed{x = 18 \\text{ or } x = -18}',
    '\\boxed{x = 3, y = 4}', '\\boxed{0.\\overline{3}}', '\\boxed{2^{\\frac{1}{2}}}',
    '\\boxed{\\$18 \\text{ and } \\$20}', 'The answer is 18 - it was 20 before.',
    'The answer is 1.5 hours or 90 minutes.',
]  # fmt: skip


def test_outputs_come_to_their_number():
    grader = matching.numbers()
    outputs = OUTPUTS | MORE_OUTPUTS
    verdicts = grader.grade([Job(output, number) for output, number in outputs.items()])
    wrong = [(output, verdict) for output, verdict in zip(outputs, verdicts, strict=True) if not verdict.correct]
    assert wrong == []
    assert [output for output in NO_OUTPUTS if grader.grade([Job(output, "5")])[0].extracted is not None] == []


@pytest.mark.parametrize(
    ("output", "gold"),
    [
        (r"\boxed{\frac{3}{4}}", "3"), ("The answer is 1/3", "1"), (r"\boxed{2^3}", "2"), (r"\boxed{10+8=18}", "10"),
        ("The answer is 5e3", "5"), (r"\boxed{1{,}000}", "1"), ("The answer is 2 1/2", "2"), ("1.5 million", "1.5"),
        ("0.333", "0.3333333"), ("-5", "5"), ("The answer is 50%", "0.5"), (r"\boxed{2\frac{1}{2}}",
        "1"), ("9" * 5000, "9"),
        ("#### 72\n\nQ: 2+3?\n#### 5", "5"), ("#### 1000001", "1000000"), ("5000004", "5000000"), ("1000000.5", "1000000"),
        ("18.000001", "18"), ("17.9999999", "18"), ("3 dozen eggs", "3"), ("1" + "0" * 40, "1" + "0" * 39 + "1"),
        ("The answer is not 5, it is 6.", "5"),
        ("2 and a half of the cakes", "2.5"), (r"\boxed{\sqrt{16}}", "16"), ("The answer is 18 dollars in 3 days.", "3"),
    ],
)  # fmt: skip
def test_near_misses_of_numbers(output, gold):
    assert not matching.numbers().grade([Job(output, gold)])[0].correct


def written(draw: random.Random) -> tuple[str, Fraction]:
    """A random number and its value."""
    a, b, c = draw.randrange(1, 99), *sorted(draw.sample(range(1, 40), 2))
    power = draw.randrange(-8, 9)
    forms = [
        (f"{a * 1234567:,}".replace(",", draw.choice([",", "{,}", r"\,", " ", "", "_", "'"])), Fraction(a * 1234567)),
        (f"{draw.choice(['$', '', chr(92) + '$'])}{a * 12345 / 100:,.2f}", Fraction(a * 12345, 100)),
        (draw.choice([f"{a}/{b}", rf"\frac{{{a}}}{{{b}}}", rf"\dfrac{{{a}}}{{{b}}}"]), Fraction(a, b)),
        (draw.choice([f"{a} {b}/{c}", rf"{a}\frac{{{b}}}{{{c}}}"]), a + Fraction(b, c)),
        (
            draw.choice([f"{a}e{power}", rf"{a} \times 10^{{{power}}}", f"{a}*10^{{{power}}}"]),
            a * Fraction(10) ** power,
        ),
        (f"{a}^{b % 6}", Fraction(a) ** (b % 6)),
    ]
    text, value = draw.choice(forms)
    return (f"-{text}", -value) if draw.random() < 0.5 else (text, value)


def test_random_numbers_have_their_values():
    draw, wrong = random.Random(0), []
    for _ in range(300):
        text, value = written(draw)
        box = rf"\boxed{{x = {text} \text{{ cm}}}}"
        for output in (
            rf"\boxed{{{text}}}",
            box,
            f"The answer is {text}.",
            f"#### {text} apples",
            f"Answer: **{text}**",
        ):
            found = numerals.value(extraction.number(output) or "")
            if found is None or abs(Fraction(found) - value) > abs(value) / 10**20:
                wrong.append((output, found, value))
    assert wrong == []


def test_equal_numbers_are_one_vote():
    outputs = ["1000", r"\boxed{1{,}000}", "10^3", "1e3", "#### 1,000.00", "The answer is $1 000."]
    assert (
        len({verdict.extracted for verdict in matching.numbers().grade([Job(output, "1") for output in outputs])}) == 1
    )


# --- options

LETTERS = {
    "The answer is (B).": "B", "the answer is B": "B", "Answer: C": "C", "answer: b": "B", "Answer: (c)": "C", "(b)": "B",
    "b)": "B", "B": "B", "b": "B", "B.": "B", "**B**": "B", "[B]": "B", r"$\boxed{E}$": "E", r"\boxed{\text{(D)}}": "D",
    r"\boxed{b}": "B", r"\boxed{B) 21}": "B", r"\boxed{\textbf{B}}": "B", r"\boxed{\text{Option B}}": "B",
    'The answer is "B".': "B", "The answer is `B`.": "B", "The answer is **(B)**.": "B", "The answer is: **B**": "B",
    "**Answer:** B": "B", "**Answer: B**": "B", "**Final Answer**\n\nB": "B", "Final answer: option C": "C",
    "ANSWER IS D. A is incorrect.": "D", "The correct answer is option B.": "B",
    "The correct option is therefore (B)": "B",
    "The answer is B because A is wrong.": "B", "The answer is B, not A.": "B", "The answer is B and not A.": "B",
    "The answer is B, A is incorrect.": "B", "The answer is A.": "A", "The answer is A because it fits.": "A",
    "The answer is a.": "A", "The answer is a)": "A", "The answer is C) 21 apples": "C", "The best choice is (E)": "E",
    "A) is wrong, so is C.\nThe correct answer is **A**.": "A", "I looked at (A) and (C); (C) fits": "C",
    "D) 12 apples": "D", "Because of that, option b is right": "B", "Option B is right, option A is not.": "B",
    "Option A is wrong. Option B is the correct one.": "B", "(C) is correct, the others are not.": "C",
    "I would go with D.": "D",
    "I choose option C.": "C", "I'd pick (E).": "E", "So we select B": "B", "So it must be option B.": "B",
    "The answer is (A).\nNo, wait: the answer is (E).": "E",
    "The answer is (B).\n\nQuestion: another?\nThe answer is (C).": "B",
    "<think>The answer is A.</think>The answer is B.": "B", "The answer is indicated by the letter D.": "D",
    "Therefore, the answer would be (C).": "C", r"The answer is $\text{B}$.": "B", "Ans: C": "C",
    r"x = \boxed{21}, so the answer is (B).": "B",
}  # fmt: skip
NO_LETTERS = [
    "", "nothing", "A car drives home.", "The answer is Canada", "The answer is a car.", "The answer is not B.",
    "The answer isn't (B).", "The answer is neither A nor B.", "The answer is A or B.", "The answer is A and C.",
    "Answer: B, C",
    "The answer is (A)/(B).", "The answer is either A or B.", "Both A and B are right.", r"\boxed{A, C}",
    r"\boxed{A \text{ or } B}",
    "A) 1\nB) 2\nC) 3", "(A) 1\n(B) 2\n(C) 3", "(A) is wrong and (C) is wrong", "Option A is wrong.",
    "Option B is not correct.",
    "Let us check option A first.", "The answer is Vitamin C.", "The answer is Plan B.", "I would not go with D.",
    "A is incorrect.",
    "A) is wrong", "Is it B?", "The answer is F.", "B vitamins are healthy and so on.", "I'd say so.",
    "The answer is don't know.",
]  # fmt: skip

LETTERS |= {
    'Answer: B. 21 apples': 'B', 'B: 21': 'B', 'Option C.': 'C', '(B) because the others are wrong': 'B',
    'So B.': 'B', 'Therefore, (C)': 'C', 'Hence it is D.': 'D', 'Answer (B)': 'B', 'Answer - B': 'B',
    '$$\\boxed{\\textbf{(B)}\\ 21}$$': 'B', 'The answer is B (21).': 'B', 'C is the correct answer.': 'C',
    'The correct answer is C, because A is wrong.': 'C', 'The answer has to be B.': 'B', '(a)': 'A', 'option a': 'A',
    'Thus the answer is option (e).': 'E', 'The right choice: D': 'D', 'Choice B is correct': 'B',
    'My answer is A.': 'A', 'my answer: a': 'A', 'A': 'A', 'Answer: A': 'A', 'a': 'A', 'A)': 'A',
    'The answer is \\(B\\).': 'B', '<answer>B</answer>': 'B', 'The answer is B.\nThe answer is C.': 'C',
    'Answer: [B]': 'B', 'Answer: {B}': 'B', 'answer is B!': 'B', 'The answer is: (B) 21 (not (C)).': 'B',
    'A is wrong, so D': 'D', 'Not A but B.': 'B', 'The answer is not A, it is B.': 'B', 'not (A) but (B)': 'B',
    'The answer is not (A) but (B).': 'B', "The answer isn't A, it's (B).": 'B', 'So it must be C.': 'C', 'Ｂ': 'B',
    'The answer is Ｂ.': 'B', '（Ｃ）': 'C', 'Both fail; hence (D)': 'D',
}  # fmt: skip
NO_LETTERS += [
    'B) is not right', 'A. is wrong', 'It is a car.', 'Let me think. E is energy.', 'The solution is C.',
    'I think A', 'A or B', 'A, B', 'None of the above', 'The answer is B or C but B is better',
    'A is wrong, so is D', 'A is wrong, so not D', 'If A is wrong, so D', 'Is it so, D?', 'So it must not be C.', 'Not A.',
    'not A but B or C', 'It is not A but a car.', 'The answer is not A but B or C.', 'The answer is not A, but a car.',
    'Maybe A is wrong, so D',
]  # fmt: skip


def test_letters_of_options():
    extract = extraction.option("ABCDE")
    assert {output: extract(output) for output in LETTERS} == LETTERS
    assert {output: extract(output) for output in NO_LETTERS} == dict.fromkeys(NO_LETTERS)
    assert extraction.option("ABCDEFGHIJ")("The answer is I think (B)") != "I"


def test_the_text_of_an_option_is_an_answer():
    texts = {"A": "21 km", "B": "the orange ball", "C": "1,500", "D": "$67.40", "E": "None of these"}
    extract = extraction.option("ABCDE", texts)
    right = {
        "The answer is 21 km.": "A", "The answer is the orange ball.": "B", "Answer: Orange ball": "B",
        r"\boxed{1500}": "C",
        "The answer is 1500": "C", r"\boxed{67.4}": "D", "none of these": "E", "The answer is B) the orange ball.": "B",
        "So the answer is: **21 km**": "A",
    }  # fmt: skip
    assert {output: extract(output) for output in right} == right
    misses = [
        "The answer is 21 km/h.",
        "The answer is not 1500.",
        "The answer is ball.",
        "The answer is 15.",
        "21 km is far away",
    ]
    assert {output: extract(output) for output in misses} == dict.fromkeys(misses)
    same = extraction.option("AB", {"A": "5", "B": "5.0"})
    assert same("The answer is 5.0") == "B"
    assert same("The answer is 5.00") is None  # either


# --- words

WORDS = {
    "It flips. So the answer is no.": "no", "Yes. No, the answer is yes": "yes", "NO": "no", "Yes": "yes",
    "**Yes**": "yes",
    "yes.": "yes", "Yes. There is no doubt.": "yes", "No, because yes would mean snow in July.": "no",
    "Yes, it is.": "yes",
    "No - it was flipped.\nSo no.": "no", "So, yes.": "yes", "Therefore, no.": "no", "The coin is flipped. Yes.": "yes",
    "The answer is **no**.": "no", 'The answer is "yes".': "yes", r"\boxed{\text{Yes}}": "yes", r"\boxed{no}": "no",
    "Answer: No": "no", "The answer is yes, no doubt.": "yes", "The answer is no because it was flipped.": "no",
    "There is no way. The answer is yes.": "yes", "The answer is: yes": "yes", "Thus the answer must be no.": "no",
    "It was heads, then tails.\n\nNo": "no", "Hence, the answer is No.": "no",
}  # fmt: skip
NO_WORDS = [
    "", "notable yesterday", "There is no doubt.", "It is no coin.", "The answer is not yes.", "The answer is yes or no.",
    "The answer is yes and no.", "The answer is neither yes nor no.", "maybe", "I have no idea.",
    "Yes-men are everywhere.",
    "Is it yes or no?", "The answer is unknown: no data.",
]  # fmt: skip

WORDS |= {
    'No. The coin is tails up.': 'no', 'the coin is heads up: yes': 'yes', 'Answer: yes\n\nExplanation: no': 'yes',
    '<answer>no</answer>': 'no', 'Yes!': 'yes', 'Of course, yes.': 'yes', "I'd say no.": 'no', 'no\n': 'no',
    'The answer is yes.\nThe answer is no.': 'no', 'The answer is “Yes”.': 'yes', 'Yes or no? Yes.': 'yes',
    'Answer: Yes — there is no reason to doubt.': 'yes', 'Answer: no - it is tails.': 'no', 'Nope': 'no', 'Nope.': 'no',
}  # fmt: skip
NO_WORDS += [
    'not yes', 'Not no.', 'Yes and no.', 'Yeah', 'No one knows.', 'No coin was flipped.',
    'No. 5 is the number of coins.', 'The answer is No. 5', 'Nopes', 'The answer is that there is no — none — doubt.',
]  # fmt: skip


def test_yes_and_no():
    extract = extraction.word(("yes", "no"))
    assert {output: extract(output) for output in WORDS} == WORDS
    assert {output: extract(output) for output in NO_WORDS} == dict.fromkeys(NO_WORDS)
    assert extraction.word(("true", "false"))("Hence the claim is false.") == "false"
    assert extraction.word(("true", "false"))("Hence the claim is not false.") is None


# --- texts

TEXTS = [
    ("The answer is The Yajo.", "yajo"), ("The answer is an", "an"), ("The answer is the", "the"), ("The answer is a.",
    "a"),
    ('The answer is "nk", since n and k end the words.', "nk"), ("The answer is nk because n and k end them.", "nk"),
    ("The answer is 'nk'.", "nk"), ("The answer is **nk**.", "nk"), (r"\boxed{\text{nk}}", "nk"), (r"\boxed{nk}", "nk"),
    ("The answer is nk. Those are the letters.", "nk"), ("so\nnk", "nk"), ("Answer: nk", "nk"), ("The answer is: “nk”",
    "nk"),
    ("The answer is nk, thus nk", "nk"), ("The answer is nk; so it is 'nk'.", "nk"),
    ("The answer is Dr. Smith.", "dr smith"), ("The answer is nk.\n\nQuestion: and this?\nThe answer is ab.", "nk"),
]  # fmt: skip
NOT_TEXTS = [
    ("oajy", "yajo"), ("The answer is not nk.", "nk"), ("The answer is an apple", "an"), ("",
    "nk"), ("The answer is n k", "nk"),
    ("The answer is nk, thus ab", "nk"), ("The answer is nk, thus ab", "ab"), ("The answer is nkx", "nk"), ("nk it was\nab", "nk"),
]  # fmt: skip


def test_short_texts():
    grade = matching.texts().grade
    assert [(output, gold) for output, gold in TEXTS if not grade([Job(output, gold)])[0].correct] == []
    assert [(output, gold) for output, gold in NOT_TEXTS if grade([Job(output, gold)])[0].correct] == []


# --- code

SQUARE = "def sq(x):\n    return x*x"
PYTHON = f"```python\n{SQUARE}\n```"
PROGRAMS = [
    PYTHON,
    f"{PYTHON}\nExample:\n```python\nprint(sq(3))\n```",
    f"{PYTHON}\nThis prints:\n```\n9\n```",
    f"{PYTHON}\n```\n>>> sq(3)\n9\n```",
    f"{PYTHON}\n```bash\npython sq.py\n```",
    f"First:\n```python\ndef sq(x):\n    return 0\n```\nBetter:\n{PYTHON}",
    "1. Code:\n   ```python\n   def sq(x):\n       return x*x\n   ```",
    "```python\n    def sq(x):\n        return x*x\n```",
    f"Here it is:\n\n{SQUARE}\n",
    f"Here it is:\n\n{SQUARE}\n\nThis squares the number.",
    PYTHON.replace("```", "~~~"),
    PYTHON.replace("```", "````"),
    PYTHON.replace("python", ""),
    PYTHON.replace("python", "Python"),
    PYTHON.replace("python", "py"),
    f"```python\n{SQUARE}",  # cut off behind the function
    f"Here: ```python\n{SQUARE}\n```",
    f"```python\n{SQUARE}```",
    SQUARE,
    f"<think>```python\ndef sq(x): return 1\n```</think>{PYTHON}",
    f"```java\nclass A {{}}\n```\n{PYTHON}",
    "```python\ndef mul(x, y):\n    return x*y\n```\nThen\n```python\ndef sq(x):\n    return mul(x, x)\n```",
    "```python\nimport math\n```\n```py\ndef two():\n    return math.isqrt(4)\n```\n```py\nsq = lambda x: x**two()\n```",
    "```python\nraise SystemExit\ndef mul(x, y): ...\n```\n```python\ndef sq(x):\n    mul = x\n    return mul*x\n```",
    "Sure:\n\n> ```python\n> def sq(x):\n>     return x*x\n> ```",
    "> def sq(x):\n>     return x*x",
    ">>> def sq(x):\n...     return x*x\n...\n>>> sq(3)\n9",
    "```python\n>>> def sq(x):\n...     return x*x\n...\n>>> sq(3)\n9\n```",
    "```python def sq(x): return x*x```",
    "Use ```def sq(x): return x*x``` for it.",
    "The function is `def sq(x): return x*x`.",
    'def sq(x):\n    """Squares.\n\n    >>> sq(3)\n    9\n    """\n    return x*x',
]
BODIES = [
    "    return x*x\n",
    "    return x*x\n\n\nprint(sq(3))\n",
    "```python\n    return x*x\n```",
    "```python\n    def helper(y):\n        return y*y\n    return helper(x)\n```",
    "    def helper(y):\n        return y*y\n\n    return helper(x)\n",
    "    return x*x\n\nThis is the square.\n",
    " return x*x\n",
    " if x:\n  return x*x\n return 0",
    " y = x\n    return y*x",
    " if x:\n        return x*x\n    return 0",
    "```python\n return x*x\n```",
]


def test_the_block_that_defines_what_was_asked():
    for output in PROGRAMS:
        namespace: dict = {}
        exec(extraction.code(output, ("sq",)), namespace)
        assert namespace["sq"](3) == 9, output
    for output in BODIES:
        namespace = {}
        exec('def sq(x):\n    """Squares."""\n' + extraction.code(output, ("sq",)), namespace)
        assert namespace["sq"](3) == 9, output


def test_programs_that_read_input_and_texts_without_code():
    program = "```python\nprint(int(input()) * 2)\n```"
    assert extraction.code(f"{program}\nFor 3 it prints\n```\n6\n```").strip() == "print(int(input()) * 2)"
    assert extraction.code(f"{program}\nTry\n```python\nx = 6\n```").strip() == "print(int(input()) * 2)"
    assert extraction.code("print(5)") == "print(5)"
    for output in ("", "   \n", "```java\nclass A {}\n```", "```\n\n```", "<think>```python\nx = 1\n```</think>"):
        assert extraction.code(output) is None
    assert "def other" in extraction.code("```python\ndef other(): pass\n```", ("sq",))  # it will fail, as it should


# --- SQL

QUERY = "SELECT name FROM t"
QUERIES = [
    QUERY, f"{QUERY};", f"```sql\n{QUERY};\n```", f"```sqlite\n{QUERY}\n```", f"```sqlite3\n{QUERY}\n```",
    f"```SQL\n{QUERY}\n```",
    f"```mysql\n{QUERY}\n```", f"```\n{QUERY}\n```", f"``` sql\n{QUERY}\n```", f"```sql {QUERY}```", f"```sql\n{QUERY}",
    f"Here is the query:\n\n{QUERY};\n\nIt gives one.", f"Here is the query:\n\n{QUERY}\n\nIt gives one.",
    f"The query is {QUERY};",
    f"The query is `{QUERY}`.", f"SQL: {QUERY}", f"Answer: {QUERY}", f"SQL Query: {QUERY};", f"Query:\n{QUERY}",
    f"```sql\n{QUERY};\n```\nResult:\n```\na\nb\n```", f"```sql\n{QUERY};\n```\n```python\nprint(1)\n```",
    f"```sql\nSELECT 2\n```\nBetter:\n```sql\n{QUERY}\n```", f"<think>SELECT 2</think>{QUERY}",
    f"With this query we select names:\n{QUERY};",
    f"{QUERY}; It gives one.", f"-- names\n{QUERY}",
    f"~~~sql\n{QUERY};\n~~~", f"~~~sql\n{QUERY};", f"Select the names with this query:\n{QUERY}",
    f"Select the names with this query:\n\n{QUERY};", f"Select the names with this query: {QUERY};", f"**{QUERY}**",
    f"sqlite> {QUERY};", f"sqlite> {QUERY};\na\nb\nsqlite> ", f"({QUERY})", f"({QUERY});", f"```{QUERY}```",
    f"Use ```{QUERY}``` here.",
    f"{QUERY}\n```", f"{QUERY};\n```\nThat is it.", f"<sql>{QUERY}</sql>", f"<sql>\n{QUERY};\n</sql>\nIt gives one.",
    f'{{"sql": "{QUERY}"}}', f'{{"query": "{QUERY};"}}', rf"\boxed{{{QUERY}}}", f"'''sql\n{QUERY}\n'''",
    QUERY.replace(" ", "\u00a0"), f"{QUERY}\n\nSelect this one to get all names.", f"{QUERY}; Select it to get all names.",
]  # fmt: skip


def test_queries():
    for output in QUERIES:
        assert extraction.query(output).removeprefix("-- names\n") == QUERY, output
    whole = [
        "SELECT a FROM t WHERE b = 'x;y'", "WITH c AS (SELECT 1) SELECT * FROM c", "SELECT 1\nUNION\nSELECT 2",
        "SELECT a\n\nFROM t",
        "SELECT a FROM t -- ; no end", "SELECT a /* ; */ FROM t", "SELECT 1; DROP TABLE t", "DROP TABLE t;\nSELECT 1",
        "SELECT 1;\nSELECT 2", "VALUES (1)", "select 1",
        "SELECT '**' FROM t", "SELECT '~~~' FROM t", "SELECT a b FROM t", "SELECT a is not null FROM t",
        "SELECT name n, age FROM t", "SELECT 'x\u00a0y'", "SELECT case when a then b end FROM t", "SELECT (1) + (2)",
        "SELECT a FROM t WHERE b IN (SELECT c FROM u)", "SELECT distinct a b FROM t", "SELECT '(' || a FROM t",
    ]  # fmt: skip
    assert [extraction.query(text) for text in whole] == whole
    assert extraction.query("Here:\n\nSELECT 1;\nDROP TABLE t;") == "SELECT 1;\nDROP TABLE t"  # two statements are none
    assert extraction.query("```select 1```") == extraction.query("sqlite> select 1;") == "select 1"
    assert extraction.query("{'sql': 1}") == "{'sql': 1}"  # no JSON
    assert extraction.query("") is extraction.query("```sql\n```") is None


# --- hostile texts


@pytest.mark.slow
def test_every_search_is_linear():
    """Texts that make careless patterns quadratic; each extractor takes them in a moment."""
    pieces = [
        "`", "```python\n", "<think>", "</think>", r"\boxed{", "{", "{}", "1", "1,", "#### ", "the answer is ", " ",
        "\n", "\t", "(",
        "(A) ", ".", "-", "1.", "$", "def f(x):\n", "٣", r"\frac{", "yes ", "1,234", "/*", "'\"", "SELECT ", "WITH a ",
        "9^", "1+",
        "1 1/2 ", r"{1\over ", r"\text{", "Question: ", "option A is ", "go with ", "answer\n", "~~~\n", "A)\n",
        '"""\n', ";", "answer:\n", "not 5 ", "not 5, ", "not A but ", "so ", "1 and ", "1 and a ", r"\sqrt{", r"\sqrt9",
        "1 times ", "dozen ", "No. ", "> ", ">>> def f(x):\n", "> def f(x):\n", "`def f", "```def f```\n", "~~~sql\n",
        "'''sql\n", "<sql>", "Select the ", "Select the\n", "sqlite> ", "**SELECT ", "(select ", "\u00a0", '{"sql": ',
        "```python\ndef f(x): pass\n```\n", ", thus ",
    ]  # fmt: skip
    extractors = [
        extraction.boxed, extraction.last_boxes, extraction.number, extraction.text, extraction.code, extraction.query,
        extraction.option("ABCDE", {"A": "5"}), extraction.word(("yes",
        "no")), lambda text: extraction.code(text, ("f",)),
    ]  # fmt: skip
    slow = []
    for piece in pieces:
        text = f"x{piece * (10_000 // len(piece))}x"
        for number, extract in enumerate(extractors):
            start = time.process_time()
            extract(text)
            if time.process_time() - start > 0.5:
                slow.append((piece, number, time.process_time() - start))
    assert slow == []


def test_strange_characters_raise_nothing():
    for text in (
        "\x00\ud800",
        "\ud800" * 100,
        r"\boxed{" + "\ud800}",
        "²" * 50,
        "½" * 50,
        "①",
        "𝟜𝟚",
        "\u2028\x85\x0c",
        "#### ½½",
    ):
        for extract in (
            extraction.number,
            extraction.text,
            extraction.code,
            extraction.query,
            extraction.option(),
            extraction.word(("yes",)),
        ):
            extract(text)
