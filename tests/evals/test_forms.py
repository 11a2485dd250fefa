"""More forms of answers and their near misses, as tables: a text and what it comes to, a line each.

`⏎` stands for a line break.
"""

from __future__ import annotations

import time

import pytest

from smallr.evals.extraction import option, word
from smallr.evals.graders import matching
from smallr.evals.graders.base import Job

NUMBERS = r"""
\boxed{1{,}234{,}567}|1234567
\boxed{1\,234\,567}|1234567
\boxed{1\!,\!234}|1234
\boxed{1,\!000}|1000
\boxed{1~000}|1000
\boxed{1\;000}|1000
\boxed{1\ 000}|1000
\boxed{12 000 000}|12000000
\boxed{\$1{,}000}|1000
\boxed{\$ 5.50}|5.5
\boxed{5.50\text{ dollars}}|5.5
\boxed{72\%}|72
\boxed{0.5}|1/2
\boxed{\dfrac{1}{2}}|0.5
\boxed{\tfrac12}|0.5
\boxed{\frac12}|0.5
\boxed{-\frac{3}{4}}|-0.75
\boxed{\frac{-3}{4}}|-0.75
\boxed{2\frac{1}{2}}|2.5
\boxed{2 \frac{1}{2}}|2.5
\boxed{10^3}|1000
\boxed{10^{3}}|1000
\boxed{2^{10}}|1024
\boxed{5 \times 10^3}|5000
\boxed{5\cdot10^{3}}|5000
\boxed{1.5 \times 10^{-2}}|0.015
\boxed{3 \times 4 = 12}|12
\boxed{x = 7}|7
\boxed{x=7}|7
\boxed{n=\frac{3}{4}}|0.75
\boxed{7 \text{ apples}}|7
\boxed{\text{7 apples}}|7
\boxed{\mathbf{7}}|7
\boxed{\mathrm{7}}|7
\boxed{ 7 }|7
\boxed{7.}|7
\boxed{+7}|7
\boxed{-7}|-7
\boxed{−7}|-7
\boxed{–7}|-7
\fbox{7}|7
$\boxed{7}$|7
$$\boxed{7}$$.|7
\boxed 7|7
\boxed{{7}}|7
\boxed{(7)}|7
\boxed{7^\circ}|7
\boxed{90^{\circ}}|90
\boxed{20 - 8 = 12}|12
\boxed{20-8}|12
\boxed{20+8}|28
\boxed{3\times4}|12
\boxed{24\div 2}|12
\boxed{24/2}|12
\boxed{\approx 3.5}|3.5
\boxed{7} apples. Then I checked: 8.|7
The answer is 7.|7
The answer is: 7|7
The answer is **7**.|7
the answer is $7$.|7
The answer is \(7\).|7
The answer is \[7\]|7
Answer: 7|7
ANSWER: 7|7
Final answer: 7|7
**Final Answer:** 7|7
**Answer**: 7|7
The final answer is $\boxed{7}$. I hope it is correct.|7
So the answer would be 7.|7
Therefore, the answer is 7 apples.|7
Therefore, the total is 12 + 3 = 15.|15
The answer is 1,234.|1234
The answer is 1,234,567.89.|1234567.89
The answer is $1,234.|1234
The answer is $1234.50.|1234.5
The answer is €5|5
The answer is 3/4.|0.75
The answer is 3 / 4.|0.75
The answer is 1 1/2 hours|1.5
The answer is 1e6|1000000
The answer is 1E6|1000000
The answer is 2.5e-3|0.0025
The answer is 10^6|1000000
The answer is 50%|50
The answer is 50 percent|50
The answer is .5|0.5
The answer is 0.50|0.5
The answer is 00012|12
#### 7|7
####7|7
#### $7|7
#### 1,000|1000
#### -7|-7
#### 7 apples|7
#### 7.00|7
#### 7⏎|7
#### 7⏎#### 8|7
Question: 2+2⏎The answer is 7.⏎⏎Q: 3+3?⏎A: The answer is 6.|7
3+4=7|7
It costs 3 dollars. So she has 7|7
7|7
  7  |7
The answer is 7, not 8.|7
The answer is not 8 but 7.|7
The answer isn't 8. The answer is 7.|7
The answer is 8. Wait, no. The answer is 7.|7
<think>The answer is 8</think>The answer is 7.|7
<think>The answer is 8</think> 7|7
\boxed{8} Hmm, actually \boxed{7}|7
\boxed{7^2}|49
\boxed{x_1=3}|3
\boxed{9999999999999999999999}|9999999999999999999999
The answer is 7 = 7|7
The answer is 3+4|7
The answer is $3+4=7$.|7
The answer is 2 * 3 = 6 apples|6
The answer is 2 x 3 = 6|6
The answer is 2 × 3 = 6|6
The answer is 12 ÷ 2 = 6|6
The answer is $12 \div 2 = \boxed{6}$|6
The answer is (2 + 4) = 6|6
The answer is 6 (that is, 2 times 3)|6
The answer is 6 because 2*3=6|6
The answer is 6, since 5 is too small|6
The answer is 6. (5 is too small.)|6
The answer is 6 cm^2|6
The answer is 6 m/s|6
The answer is 6\text{ cm}^2|6
The answer is 6kg|6
The answer is 6\%|6
The answer is 1 000 000|1000000
Total: 7|7
Total = 7|7
= 7|7
=> 7|7
∴ 7|7
A: 7|7
Question: 2+2⏎The answer is 7.⏎⏎Question: 3+3?⏎The answer is 6.|7
Q: 2?⏎A: \boxed{7}⏎⏎Q: 9?⏎A: \boxed{9}|7
"""
# The grader must not take these for the number.
NO_SUCH_NUMBER = r"""
The answer is 7:30|7
\boxed{}|7
\boxed{?}|7
\boxed{\text{none}}|0
\boxed{7, 8}|7
\boxed{7 \text{ or } 8}|7
\boxed{7 \text{ and } 8}|8
\boxed{7x}|7
\boxed{x+7}|7
\boxed{7\sqrt{2}}|7
\boxed{\sqrt{2}}|2
\boxed{7!}|7
\boxed{7\pi}|7
\boxed{\pi}|3
\boxed{7:8}|7
\boxed{7^2}|7
\boxed{7/0}|7
\boxed{\frac{7}{0}}|7
\boxed{(3,4)}|3
\boxed{(3,4)}|34
\boxed{[3,4]}|4
\boxed{1,23}|123
\boxed{12,34}|1234
\boxed{1,2,3}|123
\boxed{10+8=18}|8
\boxed{2^3}|3
\boxed{\frac{3}{4}}|4
\boxed{5\times10^3}|5
\boxed{5\times10^3}|10
\boxed{x_1=3}|1
\boxed{x_{12}=3}|12
\boxed{33_5}|33
\boxed{101_2}|101
\boxed{10_{2}}|10
\boxed{0x1F}|1
\boxed{1/3}|0.33
\boxed{70}|7
\boxed{7}|70
\boxed{-7}|7
\boxed{7}|-7
\boxed{1.000}|1000
\boxed{7 - 8}|7
\boxed{7\pm1}|7
\boxed{7 < x}|7
\boxed{\infty}|7
\boxed{2024-01-07}|7
\boxed{2024-01-07}|2024
\boxed{9999999999999999999999}|9999999999999999999998
\boxed{9^{9^{9}}}|9
\boxed{9^{99999999999}}|9
\boxed{1e999999999}|1
The answer is 7 8|7
The answer is 7 8|78
The answer is between 7 and 8|8
The answer is 7 or 8.|7
The answer is 5e3|3
The answer is 2 1/2|2
The answer is 12:30|30
The answer is 7.5.|7
The answer is 1,23|1
The answer is 1,23|123
The answer is x7|7
The answer is A7|7
The answer is -7.|7
The answer is unknown. Question 7|7
The answer cannot be determined from 7|7
The answer can't be 7|7
There is no answer for 7|7
We cannot determine it from 7|7
I don't know|7
|7
The answer is 3+4=8|7
\boxed{2(3)}|2
\boxed{2(-3)}|2
\boxed{2\left(\frac12\right)}|2
The answer is undefined.⏎Step 7|7
The answer is not known. 7|7
"""
OPTIONS = r"""
(B)|B
B|B
B.|B
b|B
B)|B
[B]|B
**B**|B
**B.** Because A is wrong.|B
The answer is (b).|B
The answer is B|B
The answer is option B.|B
The correct answer is B: 12|B
The correct option is (B) 12|B
Answer: (B)|B
answer is b)|B
Answer:⏎B|B
Answer: **B**|B
\boxed{B}|B
\boxed{\text{B}}|B
\boxed{\textbf{(B)}}|B
\boxed{(B) 12}|B
\boxed{\text{(B)}\ 12}|B
$\boxed{\mathrm{B}}$|B
The answer is $B$.|B
The answer is 'B'.|B
The answer is “B”.|B
Choice B is correct.|B
Option B|B
B is correct.|B
B is the correct answer, not A.|B
The answer is not A but B.|B
The answer is B, not A.|B
I choose B.|B
I'd pick B|B
My answer: B|B
My final choice is B.|B
Therefore, B.|B
So it must be B.|B
Hence (B) is right.|B
A is wrong. C is wrong. So B.|B
(A) is wrong, (B) is right.|B
The answer is A. Wait, no: the answer is B.|B
<think>The answer is A.</think>B|B
A good question. The answer is B.|B
ANSWER: B|B
ANSWER IS B|B
Answer B|B
The best answer is B) because...|B
B: 12|B
(B) 12 apples|B
The answer is (B) A dog|B
A dog is an animal. The answer is (C).|C
I think that a dog...|None
A|A
A.|A
(a)|A
The answer is A.|A
The answer is a dog.|None
The answer is a.|A
I am not sure.|None
I|None
|None
None of the above|None
The answer is either A or B.|None
A or B|None
Both A and B|None
The answer is A and B.|None
A, B, C|None
ABCDE|None
Answer: AB|None
The answer is BB|None
The answer is because it rained|None
The answer is Z|None
The answer is bad.|None
The answer is be careful|None
Can't decide between A and B|None
Not A.|None
The answer is not B.|None
Vitamin B is good.|None
Plan B failed.|None
My choice is B|B
My guess: B|B
"""
WORDS = r"""
Yes|yes
No|no
yes.|yes
NO!|no
"Yes"|yes
**No**|no
Yes, it does.|yes
No, it doesn't.|no
The answer is yes.|yes
The answer is no.|no
So the answer is **yes**.|yes
Answer: No|no
Final answer: yes|yes
\boxed{yes}|yes
\boxed{\text{No}}|no
The answer is "no".|no
There is no doubt: yes|yes
Yes. There is no way around it.|yes
No. Yes would be wrong.|no
There is no reason to think so. So the answer is no.|no
I have no idea.|None
There is no evidence.|None
No problem, the answer is yes.|yes
It is not true. No.|no
It is heads up. yes|yes
Yes and no.|None
Yes or no? The answer is no.|no
yes/no|None
The answer is yes or no|None
The answer is neither yes nor no|None
yesterday|None
Not sure|None
The answer is not yes.|None
The answer is not no.|None
<think>yes</think>no|no
A: no|no
So, no.|no
So yes, he can.|yes
Therefore, the coin is still heads up: yes|yes
"""


def table(text: str) -> list[tuple[str, str]]:
    lines = text.strip("\n").split("\n")
    return [(form.replace("⏎", "\n"), right) for form, _, right in (line.rpartition("|") for line in lines)]


@pytest.mark.parametrize(("forms", "right"), [(NUMBERS, True), (NO_SUCH_NUMBER, False)])
def test_numbers(forms, right):
    found = table(forms)
    verdicts = matching.numbers().grade([Job(*each) for each in found])
    assert [each for each, verdict in zip(found, verdicts, strict=True) if verdict.correct != right] == []


@pytest.mark.parametrize(("extract", "forms"), [(option(), OPTIONS), (word(("yes", "no")), WORDS)])
def test_choices(extract, forms):
    assert [(form, found) for form, right in table(forms) if (found := str(extract(form))) != right] == []


def test_many_questions_take_no_longer_than_one_search():
    start = time.perf_counter()
    text = "Question: 1\n" * 15_000
    assert matching.numbers().grade([Job(text + "The answer is 7.\n\n" + text, "7")])[0].correct
    assert time.perf_counter() - start < 2
