"""Graders on right, wrong and hostile answers."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

import pytest

from smallr.evals import extraction
from smallr.evals.graders import matching, sql
from smallr.evals.graders.base import Job
from smallr.evals.graders.programs import Calls, Check, Programs, Streams, same_output
from smallr.evals.graders.symbolic import Symbolic
from smallr.evals.graders.symbolic import judge as judge_expression
from smallr.evals.isolation import sandbox
from smallr.evals.isolation.pool import Pool
from smallr.evals.isolation.sandbox import Limits

REASON = sandbox.why_not_isolated()


@pytest.fixture(scope="module")
def symbolic():
    grader = Symbolic(workers=2, seconds=3.0)
    yield grader
    grader.close()


# --- numbers, options, words, texts


@pytest.mark.parametrize(
    ("output", "gold", "right", "extracted"),
    [
        ("so 3 + 4 = 7\n#### 7", "7", True, "7"),
        ("The total is $1,234.50.", "1234.5", True, "1234.5"),
        (r"thus \boxed{42}, not 41", "42", True, "42"),
        ("The answer is 12. I checked 3 times.", "12", True, "12"),
        ("answer: −5", "-5", True, "-5"),
        ("0.333", "0.3333333", False, "0.333"),
        ("0.3333333", "0.3333333333", True, "0.3333333"),
        ("1000001", "1000000", False, "1000001"),
        ("18.000001", "18", False, "18.000001"),
        ("18.00", "18", True, "18"),
        ("51", "51.0", True, "51"),
        ("9**9**9**9", "387420489", False, None),
        ("1e99999999999", "1", False, None),
        ("no idea", "7", False, None),
        ("", "7", False, None),
        ("<think>the answer is 3</think> The answer is 4", "4", True, "4"),
        (r"\boxed{\boxed{\boxed{8}}}", "8", True, "8"),
        ("9" * 5000, "9", False, None),
    ],
)
def test_numbers(output, gold, right, extracted):
    (verdict,) = matching.numbers().grade([Job(output, gold)])
    assert verdict.correct is right
    if len(output) < 1000:
        assert verdict.extracted == extracted
    assert (verdict.reason == "no answer") == (verdict.extracted is None)


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        ("The answer is (B).", "B"),
        ("the answer is B", "B"),
        ("Answer: C", "C"),
        (r"\boxed{\text{(D)}}", "D"),
        (r"$\boxed{E}$", "E"),
        ("A) is wrong, so is C.\nThe correct answer is **A**.", "A"),
        ("I looked at (A) and (C); (C) fits", "C"),
        ("B", "B"),
        ("D) 12 apples", "D"),
        ("A car drives home.", None),
        ("The answer is Canada", None),
        ("Because of that, option b is right", "B"),
        ("The answer is (A).\nNo, wait: the answer is (E).", "E"),
        ("nothing", None),
    ],
)
def test_options(output, letter):
    assert extraction.option("ABCDE")(output) == letter


def test_words_and_texts():
    grade = matching.words(("yes", "no")).grade
    outputs = ["It flips. So the answer is no.", "Yes. No, the answer is yes", "NO", "notable yesterday"]
    assert [verdict.extracted for verdict in grade([Job(output, "no") for output in outputs])] == [
        "no",
        "yes",
        "no",
        None,
    ]
    grade = matching.texts().grade
    assert [verdict.correct for verdict in grade([Job("The answer is The Yajo.", "yajo"), Job("oajy", "yajo")])] == [
        True,
        False,
    ]


# --- mathematics


def test_expressions(symbolic):
    cases = [
        (r"\boxed{\frac{1}{2}}", "0.5", True),
        (r"so it is $\dfrac{\pi}{2}$.", r"\frac{\pi}{2}", True),
        (r"\boxed{(3, \frac{\pi}{2})}", r"\left( 3, \frac{\pi}{2} \right)", True),
        (r"\boxed{x^2+2x+1}", "(x+1)^2", True),
        (r"\boxed{\text{Evelyn}}", r"\text{Evelyn}", True),
        (r"\boxed{2\sqrt{3}}", r"\sqrt{12}", True),
        (r"\boxed{\frac{1}{3}}", "0.5", False),
        (r"first \boxed{3}, finally \boxed{4}", "3", False),
        ("no answer at all", "3", False),
    ]
    verdicts = symbolic.grade([Job(output, gold) for output, gold, _ in cases])
    assert [verdict.correct for verdict in verdicts] == [right for *_, right in cases]


@pytest.mark.slow
def test_hostile_mathematics_ends_and_the_pool_goes_on(symbolic):
    deep = r"\frac{" * 400 + "1" + "}{2}" * 400
    hostile = [
        r"\boxed{9^{9^{9^{9^{9}}}}}",
        r"\boxed{" + deep + "}",
        r"\boxed{" + "(" * 3000 + "}",
        r"\boxed{" + "{" * 2000 + "}" * 2000 + "}",
        r"\boxed{1000000000!!!!}",
        r"\boxed{\int_0^1 x^{x^{x^x}} dx}",
        "$" * 5000,
        r"\boxed{10^{10^{10}} + 1}",
        "\x00\ud800",
    ]
    start = time.monotonic()
    verdicts = symbolic.grade([Job(output, "7") for output in hostile])
    assert time.monotonic() - start < 120
    assert not any(verdict.correct for verdict in verdicts)
    assert all(verdict.correct for verdict in symbolic.grade([Job(r"\boxed{14/2}", "7")] * 4))


def test_numbers_that_rounding_makes_equal_and_answers_of_several_boxes():
    cases = [
        (r"\boxed{3}, \boxed{5}", "3,5", True),
        (r"$\boxed{3}$ and $\boxed{5}$", "3,5", True),
        (r"\boxed{3}, \boxed{5}", "5", False),
        (r"\boxed{\frac{1}{2004!}}", r"\frac{1}{2006!}", False),
        (r"\boxed{\frac{1}{2^{98}}}", r"\frac{1}{2^{99}}", False),
        (r"\boxed{2 \cdot 10^{-20}}", "10^{-20}", False),
        (r"\boxed{10^{-20}}", r"\frac{1}{10^{20}}", True),
        (r"\boxed{e^{-40}}", "e^{-41}", False),
        (r"\boxed{33_5}", "33", False),
        (r"\boxed{33}", "33_5", False),
        (r"\boxed{33_{5}}", "33_5", True),
        (r"\boxed{33_6}", "33_5", False),
        (r"\boxed{(-2,1)}", "1,-2", False),
        (r"\boxed{1,-2}", "(-2,1)", False),
        (r"\boxed{[1,2]}", "(1,2)", False),
        (r"\boxed{\frac13}", "0.333333", True),
        (r"\boxed{0.33}", r"\frac13", False),
        (r"\boxed{0.333333}", r"\frac13", False),
        (r"\boxed{0.3333333333333333}", r"\frac13", False),
        (r"\boxed{1.414214}", r"\sqrt2", False),
        (r"\boxed{(0.333333, 1)}", r"(\frac13, 1)", False),
        (r"\boxed{0.333333, 0.5}", r"\frac13, \frac12", False),
        (r"\boxed{(0.5, 1)}", r"(\frac12, 1)", True),
        (r"\boxed{0.1}", r"\frac{1}{10}", True),
        (r"\boxed{0.1\pi}", r"\frac{\pi}{10}", True),
        (r"\boxed{3.75}", r"\frac{15}{4}", True),
        (r"\boxed{18.0}", "18", True),
        (r"\boxed{18.000001}", "18", False),
        (r"\boxed{50}", r"50\%", True),
        (r"\boxed{x=5}", "5", True),
        (r"\boxed 7", "7", True),
        ("\\boxed{72}\n\nQuestion: 2+3?\n\\boxed{5}", "72", True),
        ("\\boxed{72}\n\nQuestion: 2+3?\n\\boxed{5}", "5", False),
    ]
    assert [case for case in cases if judge_expression(*case[:2])["correct"] is not case[2]] == []


def hang(seconds: float) -> str:
    """Work that no Python signal handler can interrupt: a computation inside C code."""
    if seconds > 1:
        return str(len(str(9 ** (9**9))))
    time.sleep(seconds)
    return "done"


def leave(code: int) -> None:
    """A crash."""
    os._exit(code)


@pytest.mark.slow
def test_a_pool_kills_what_hangs_and_replaces_what_crashes():
    with Pool(f"{__name__}:hang", workers=2, seconds=1.0) as pool:
        answers = pool.map([{"seconds": 100}, {"seconds": 0.01}, {"seconds": 100}, {"seconds": 0.01}])
        assert [answer.timed_out for answer in answers] == [True, False, True, False]
        assert [answer.value for answer in answers] == [None, "done", None, "done"]
        assert pool.map([{"wrong": 1}])[0].problem.startswith("TypeError")
    with Pool(f"{__name__}:leave", workers=1, seconds=5.0) as pool:
        assert [answer.problem for answer in pool.map([{"code": 0}, {"code": 0}])] == [
            "the worker ended (out of memory, or a crash)"
        ] * 2


# --- SQL


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sql") / "a b?.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("create table t (name text, age integer)")
        connection.executemany("insert into t values (?, ?)", [("a", 1), ("b", 2), ("b", 2), ("c", 3)])
    return path


@pytest.fixture(scope="module")
def execution(database):
    grader = sql.ExecutionMatch(lambda row: database, workers=2, seconds=1.0)
    yield grader
    grader.close()


@pytest.mark.parametrize(
    ("predicted", "gold", "right", "reason"),
    [
        ("```sql\nSELECT name FROM t ORDER BY age DESC;\n```", "select name from t", True, ""),
        ("SELECT name FROM t ORDER BY age DESC", "select name from t order by age", False, ""),
        ("SELECT DISTINCT name FROM t", "select name from t", False, ""),  # a multiset
        ("SELECT age, name FROM t", "select name, age from t", True, ""),
        ("SELECT age, age FROM t", "select name, age from t", False, ""),
        ("SELECT count(*) * 1.0 FROM t", "select count(*) from t", True, ""),
        ("SELECT nobody FROM t", "select name from t", False, "the query fails: no such column: nobody"),
        ("", "select name from t", False, "no answer"),
        ("DROP TABLE t", "select name from t", False, "the query fails: not authorized"),
        ("ATTACH '/etc/passwd' AS x", "select name from t", False, "the query fails: not authorized"),
        ("PRAGMA database_list", "select name from t", False, "the query fails: not authorized"),
        ("SELECT load_extension('x')", "select name from t", False, "the query fails: not authorized"),
        ("SELECT 1; DROP TABLE t", "select name from t", False, "the query fails: You can only execute one"),
        ("SELECT hex(zeroblob(100000000))", "select name from t", False, "the query fails: string or blob too big"),
        (
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
            "select 1",
            False,
            "more than",
        ),
        (
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n",
            "select 1",
            False,
            "timed",
        ),
        ("SELECT 1", "selekt 1", False, "the gold query fails"),
    ],
)
def test_sql(execution, predicted, gold, right, reason):
    (verdict,) = execution.grade([Job(predicted, gold)])
    assert verdict.correct is right
    assert verdict.reason.startswith(reason)
    assert bool(verdict.reason) == bool(reason)


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT"
HOSTILE_QUERIES = [
    # writes
    "DELETE FROM t", "UPDATE t SET age = 0", "INSERT INTO t VALUES ('x', 9)", "REPLACE INTO t VALUES ('x', 9)", "DROP TABLE t",
    "CREATE TABLE u (a)", "CREATE TEMP TABLE u (a)", "CREATE VIEW v AS SELECT 1", "CREATE INDEX i ON t (age)",
    "CREATE TRIGGER g AFTER INSERT ON t BEGIN SELECT 1; END", "CREATE VIRTUAL TABLE f USING fts5(a)", "ALTER TABLE t RENAME TO u",
    "ALTER TABLE t ADD COLUMN z", "VACUUM", "VACUUM INTO '/tmp/stolen.db'", "ANALYZE", "REINDEX", "BEGIN", "BEGIN IMMEDIATE",
    "COMMIT", "ROLLBACK", "SAVEPOINT s", "WITH x AS (SELECT 1) DELETE FROM t", "INSERT INTO t SELECT * FROM t RETURNING name",
    # other files, code
    "ATTACH '/etc/passwd' AS x", "ATTACH ':memory:' AS x", "ATTACH 'new.db' AS x", "DETACH main", "SELECT load_extension('x')",
    "SELECT readfile('/etc/passwd')", "SELECT writefile('/tmp/stolen', 'x')", "SELECT * FROM fsdir('/')", "SELECT edit('x')",
    "SELECT fts3_tokenizer('simple', x'00')", "SELECT * FROM dbstat", "SELECT * FROM sqlite_dbpage",
    # settings
    "PRAGMA user_version = 7", "PRAGMA journal_mode = WAL", "PRAGMA writable_schema = 1", "PRAGMA database_list",
    "PRAGMA temp_store_directory = '/tmp'", "PRAGMA hard_heap_limit = 1", "SELECT * FROM pragma_database_list",
    "SELECT * FROM pragma_table_info('t')", "EXPLAIN SELECT 1", "EXPLAIN QUERY PLAN SELECT 1",
    # several statements, strange texts
    "SELECT 1; DROP TABLE t", "SELECT name FROM t; SELECT name FROM t", "SELECT 1\x00; DROP TABLE t", "SELECT '\ud800'", ";", "--",
    "/*", "SELECT", "SELECT * FROM nowhere", "SELECT name FROM t WHERE " + "(" * 2000 + "1" + ")" * 2000,
    "SELECT 1" + " UNION ALL SELECT 1" * 3000, "SELECT " + "1+" * 50_000 + "1", "SELECT " + "x" * 2_000_000,
    # time and memory
    f"{ENDLESS} i FROM n", f"{ENDLESS} max(i) FROM n", f"{ENDLESS} count(*) FROM n a, n b",
    "SELECT count(*) FROM " + ", ".join(["(SELECT * FROM t, t, t, t)"] * 8), "SELECT zeroblob(1000000000)",
    "SELECT randomblob(1000000000)", "SELECT hex(zeroblob(100000000))", "SELECT printf('%1000000000d', 1)",
    "SELECT replace(hex(zeroblob(100000)), '0', hex(zeroblob(100000)))",
    f"{ENDLESS} group_concat(hex(zeroblob(10000))) FROM n",
]  # fmt: skip


@pytest.mark.slow
def test_hostile_queries_have_no_effect(execution, database):
    before, home = database.read_bytes(), set(Path.cwd().iterdir())
    gold = "select name || '?' from t"  # nobody writes this
    start = time.monotonic()
    verdicts = execution.grade([Job(query, gold) for query in HOSTILE_QUERIES])
    assert time.monotonic() - start < 60
    assert [query[:80] for query, verdict in zip(HOSTILE_QUERIES, verdicts, strict=True) if verdict.correct] == []
    assert database.read_bytes() == before
    assert [path.name for path in database.parent.iterdir()] == [database.name]
    assert set(Path.cwd().iterdir()) == home
    assert not any(Path(name).exists() for name in ("/tmp/stolen", "/tmp/stolen.db"))
    assert execution.grade([Job("SELECT name FROM t", "select name from t")])[0].correct  # it goes on


def test_many_equal_columns_do_not_explode():
    rows = [tuple(range(12)) for _ in range(5)]
    assert sql.same_result([(1,) * 12] * 5, [(1,) * 12] * 5, ordered=False)
    shuffled = [row[::-1] for row in rows]
    assert sql.same_result(shuffled, rows, ordered=False)
    ambiguous = [(i % 2,) * 9 + (1 - i % 2,) for i in range(4)]
    start = time.monotonic()
    assert not sql.same_result([*ambiguous[:3], (0,) * 10], ambiguous, ordered=False)
    assert time.monotonic() - start < 30


# --- code

ADD = Calls("", {"add": "add"}, ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"])
EXPECTED = "the secret expected output 31415"
SAY = Calls(f"GOLD = {EXPECTED!r}", {"log": "log"}, ["assert log(0) == GOLD"])
QUICK = Limits(wall_seconds=1.5, cpu_seconds=2, memory_bytes=256 << 20, processes=4)

MODES = [
    pytest.param(False, marks=pytest.mark.skipif(REASON is not None, reason=f"no isolation: {REASON}"), id="isolated"),
    pytest.param(True, id="limits alone"),
]


@pytest.fixture(scope="module", params=MODES)
def programs(request):
    grader = Programs(unsafe=request.param, workers=2, limits=QUICK)
    yield grader
    grader.close()


def judged(grader, code: str, tests):
    return grader.grade([Job(f"```python\n{code}\n```", Check(tests))])[0]


def test_right_and_wrong_code(programs):
    assert judged(programs, "def add(a, b): return a + b", ADD).correct
    wrong = judged(programs, "def add(a, b): return a - b", ADD)
    assert (wrong.correct, wrong.reason) == (False, "assertion failed: ")
    assert judged(programs, "def add(a, b):", ADD).reason.startswith("IndentationError")
    assert judged(programs, "def other(): pass", ADD).reason.startswith("KeyError")
    assert judged(programs, "def add(a, b): raise ValueError('no')", ADD).reason == "ValueError: ValueError: no"
    assert programs.grade([Job("```java\nclass A {}\n```", Check(ADD))])[0].reason == "no answer"


HOSTILE = {
    "leaves before the tests": "import sys\nsys.exit(0)",
    "leaves at once": "import os\nos._exit(0)",
    "leaves in the call": "import os\ndef add(a, b): os._exit(0)",
    "prints a verdict": 'import os\nprint(\'{"ok": true, "passed": 2, "total": 2, "failure": null}\', flush=True)\nos._exit(0)',
    "writes a verdict to every descriptor": """
import os
for fd in range(1, 64):
    try: os.write(fd, b'{"ok": true, "passed": 2, "total": 2, "failure": null}\\n')
    except OSError: pass
def add(a, b): return 0
""",
    "an object that equals everything": """
class Equal:
    def __eq__(self, other): return True
    def __hash__(self): return 0
def add(a, b): return Equal()
""",
    "a number that equals everything": """
class Equal(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def add(a, b): return Equal(99)
""",
    "changes builtins": """
import builtins
builtins.all = lambda *a: True
builtins.AssertionError = SystemExit
def add(a, b): return 0
""",
    "an exit from the call": "def add(a, b): raise SystemExit(0)",
    "looks at its callers": """
import sys
def add(a, b):
    frame = sys._getframe()
    while frame:
        frame.f_globals['AssertionError'] = ValueError
        frame.f_locals['passed'] = 2
        frame = frame.f_back
    return 0
""",
    "hooks at the end": "import atexit, os\natexit.register(lambda: os.write(1, b'{\"ok\": true}'))\ndef add(a, b): return 0",
}


@pytest.mark.parametrize("code", HOSTILE.values(), ids=HOSTILE.keys())
def test_tricks_do_not_pass(programs, code):
    verdict = judged(programs, code, ADD)
    assert not verdict.correct
    assert verdict.reason


def test_the_expected_output_cannot_be_found(programs):
    """It looks through its memory, its files and, where there are any, those of other processes."""
    code = """
import gc, glob, os, sys
def log(n):
    found = []
    for value in gc.get_objects():
        if isinstance(value, dict):
            found += [v for v in list(value.values()) if isinstance(v, str) and v.startswith('the secret')]
    for folder, _, names in os.walk('.'):
        for name in names:
            text = open(os.path.join(folder, name), errors='replace').read()
            if 'the secret ' + 'expected' in text:
                found.append(text[text.index('the secret ' + 'expected'):][:32])
    folder = os.path.dirname(os.getcwd())
    names = [path for pattern in ('/smallr-*/*', '/tmp*/*') for path in glob.glob(folder + pattern)]
    for name in names + glob.glob('/proc/[0-9]*/fd/*') + glob.glob('/proc/[0-9]*/cwd/*.json'):
        if os.path.isfile(name) and os.path.getsize(name) < 10**7:
            try:
                with open(name, errors='replace') as file:
                    text = file.read()
            except OSError:
                continue
            if 'the secret ' + 'expected' in text:
                found.append(text[text.index('the secret ' + 'expected'):][:32])
    return found[0] if found else 'nothing'
"""
    assert judged(programs, "def log(n): return 'the secret ' + 'expected output 31415'", SAY).correct
    assert not judged(programs, code, SAY).correct


@pytest.mark.slow
def test_loops_and_floods_end(programs):
    start = time.monotonic()
    loops = [
        "while True: pass",
        "def add(a, b):\n    while True: pass",
        "def add(a, b):\n    import time; time.sleep(99)",
    ]
    for loop in loops:
        verdict = judged(programs, loop, ADD)
        assert not verdict.correct
        assert verdict.reason in ("timed out", "Gone: the solution's process ended")  # of processor time
    assert not judged(programs, "def add(a, b): return 'x' * 10**9", ADD).correct
    assert judged(programs, "def add(a, b):\n    print('x' * 10**6)\n    return a + b", ADD).correct
    deep = "def add(a, b):\n    x = []\n    for _ in range(100000): x = [x]\n    return x"
    assert not judged(programs, deep, ADD).correct
    assert time.monotonic() - start < 60


def test_values_cross_as_what_they_are(programs):
    code = """
from collections import Counter, namedtuple
Point = namedtuple('Point', 'x y')
class Pair:
    def __init__(self, a): self.a = a
def same(value): return value
def counted(text): return Counter(text)
def point(): return Point(1, 2)
def lazily(n): return (i * i for i in range(n))
def first(pairs): return pairs[0].a
def convert(kind, text): return kind(text)
def fail(): raise KeyError('gone')
"""
    names = ("Pair", "same", "counted", "point", "lazily", "first", "convert", "fail")
    values = [
        1,
        2**70,
        1.5,
        True,
        None,
        "é\n",
        b"\xff",
        (1, [2, {3}]),
        {(1, 2): [None]},
        1j,
        frozenset({1}),
        range(3),
    ]
    tests = [
        f"assert same({value!r}) == {value!r} and type(same({value!r})) is {type(value).__name__}"
        for value in values
        if value is not None
    ]
    tests += [
        "assert same(None) is None",
        "assert same(-(10**5000)) == -(10**5000)",
        "assert same(float('inf')) == float('inf') and same(float('nan')) != same(float('nan'))",
        "assert counted('aab') == {'a': 2, 'b': 1}",
        "assert point() == (1, 2)",
        "assert list(lazily(3000)) == [i * i for i in range(3000)]",
        "assert first([Pair(7), Pair(8)]) == 7",
        "assert Pair(1) != Pair(1)",
        "assert convert(int, '5') == 5",
        "try:\n    fail()\n    assert False, 'no error'\nexcept KeyError:\n    pass",
    ]
    setup = "import sys; sys.set_int_max_str_digits(0)"
    verdict = judged(programs, code, Calls(setup, {name: name for name in names}, tests))
    assert (verdict.correct, verdict.reason) == (True, "")


def test_programs_that_read_and_write(programs):
    cases = Streams([("2 3\n", "5\n"), ("10 -4", "6")])
    assert judged(programs, "a, b = map(int, input().split())\nprint(a + b)", cases).correct
    assert judged(programs, "a, b = map(int, input().split())\nprint(float(a + b))", cases).correct  # the same number
    assert judged(programs, "print(5)", cases).reason == "case 2: another output"
    assert judged(programs, "import sys\nsys.exit(0)", cases).reason == "case 1: another output"
    assert judged(programs, "1 / 0", cases).reason.startswith("case 1: exit code 1 ZeroDivisionError")
    assert judged(programs, "while True: print('x' * 1000)", cases).reason == "too much output"
    assert not judged(programs, "print(5)", Streams([])).correct


def test_outputs_are_compared_by_lines_and_numbers():
    assert same_output("1  2\n3 \n", "1 2\n3")
    assert same_output("0.50", "0.5")
    assert not same_output("1\n2", "1 2")
    assert not same_output("NaN", "1")
    assert not same_output("abc", "abd")


def test_code_is_refused_where_it_cannot_be_isolated(monkeypatch):
    from smallr.core.errors import UserError

    monkeypatch.setattr(sandbox, "why_not_isolated", lambda: "no namespaces")
    with pytest.raises(UserError, match=r"no namespaces.*--unsafe_code_execution"):
        Programs()
    Programs(unsafe=True).close()
