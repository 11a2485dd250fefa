"""More ways in which models write programs and queries, each with what must come out."""

from __future__ import annotations

import sqlite3
import time

import pytest

from smallr.evals.extraction import programs
from smallr.evals.graders.sql import query

GOOD = "def sq(x):\n    return x*x"
BLOCK = f"```python\n{GOOD}\n```"
PROGRAMS = [
    GOOD, BLOCK, BLOCK.replace("python", "Python"), BLOCK.replace("python", ""), BLOCK.replace("```", "~~~"),
    BLOCK.replace("```", "````"), BLOCK[:-4], f"```python\n{GOOD}```", BLOCK.replace("\n", "\r\n"),
    "```python\ndef sq(x):\n    return x+x\n```\nWait, that is wrong:\n" + BLOCK,
    BLOCK + "\n```python\nprint(sq(2))\n```", BLOCK + "\n```python\ndef main():\n    print(sq(2))\nmain()\n```",
    BLOCK + "\n```python\nassert sq(2)==4\n```", BLOCK + '\n```json\n{"a":1}\n```', BLOCK + "\n```text\n9\n```",
    "```bash\npip install x\n```\n" + BLOCK + "\n```bash\npython a.py\n```",
    BLOCK + "\n```python\n>>> sq(3)\n9\n```", BLOCK + "\n```python\nsq(\n```",
    "```python\ndef h(x):\n    return x\n```\nthen\n```python\ndef sq(x):\n    return h(x)*h(x)\n```",
    "```python\ndef sq(x):\n    return h(x)*h(x)\n```\nwith\n```python\ndef h(x):\n    return x\n```",
    "```python\ndef h(x):\n    return x\n```\n```python\ndef sq(x):\n    return h(x)**2\n```\n"
    "or\n```python\ndef h(x):\n    return 0\n```",
    "```python\nimport math\n```\n```python\ndef sq(x):\n    return int(math.pow(x,2))\n```",
    "```python\nsq = lambda x: x*x\n```", "1. First\n\n   ```python\n   def sq(x):\n       return x*x\n   ```\n2. Done",
    "> ```python\n> def sq(x):\n>     return x*x\n> ```", BLOCK.replace("    ", "\u00a0\u00a0\u00a0\u00a0"),
    BLOCK.replace("    ", " \u00a0 \u00a0"), f"Here it is:\n\n{GOOD}\n\nThis squares x.",
    "<think>```python\ndef sq(x):\n    return 0\n```</think>\n" + BLOCK, f"\ufeff{BLOCK}", f"python\n{GOOD}",
    f'```python title="a.py"\n{GOOD}\n```', f"```{{.python}}\n{GOOD}\n```",
    f"```python\nfrom functools import lru_cache\n@lru_cache\n{GOOD}\n```",
]  # fmt: skip
QUERIES = [
    "```sql\nselect 1\n```", "```sqlite3\nselect 1\n```", "```\nselect 1\n```", "select 1 -- one", "(select 1)",
    "Here is the query:\n\nSELECT 1;\n\nIt gives one.", "Use `SELECT 1`.", "with a as (select 1 x) select x from a",
    "-- one\nselect 1", "SQL: SELECT 1", '{"sql": "select 1"}', '```json\n{"query": "SELECT 1"}\n```',
    'In JSON:\n```json\n{"sql": "SELECT 1;", "why": "one"}\n```', "select\n  1\n;", "values (1)", "select 1 where ';'=';'",
    "SELECT 1\n\nThis returns one.", "SELECT 1\nThis query returns one.", "SELECT 1\nIt returns exactly one row.",
    "```sql\nselect 2\n```\nNo, better:\n```sql\nselect 1\n```", "```sql\nselect 1\n```\n```json\n{\"a\": 1}\n```",
    "```sql\nselect 1\n```\nResult:\n```\n1\n```", "<think>select 2</think>select 1", '"SELECT 1"', "“SELECT 1”",
    r"\boxed{\text{SELECT 1}}", r"\boxed{SELECT 1}", "```sql\nselect 1", "~~~sql\nselect 1\n~~~", "**SELECT 1**",
    "SELECT 1\nWHERE 'This is it' = 'This is it'", "SELECT 1\nUNION\nSELECT 1",
]  # fmt: skip
NO_QUERY = ["select 1; select 1", '```json\n{"answer": 1}\n```']


@pytest.mark.parametrize("text", PROGRAMS)
def test_programs(text):
    names: dict = {}
    exec(programs.code(text, ("sq",)), names)
    assert names["sq"](3) == 9


@pytest.mark.parametrize("text", QUERIES)
def test_queries(text):
    assert sqlite3.connect(":memory:").execute(query(text)).fetchall() == [(1,)]


@pytest.mark.parametrize("text", NO_QUERY)
def test_no_queries(text):
    with pytest.raises((sqlite3.Error, sqlite3.Warning)):
        sqlite3.connect(":memory:").execute(query(text) or "?").fetchall()


@pytest.mark.parametrize(
    "piece", [r"\text{", r"\boxed{\text{", "\nThis is ", '"', "“", " \u00a0", '{"sql": "', "\n \u00a0"]
)
def test_each_search_is_one_pass(piece):
    text = (piece * 60_000)[:60_000]
    start = time.process_time()
    for form in (text, f"SELECT 1{text}", f"{text}\nSELECT 1"):
        query(form)
        programs.code(form, ("sq",))
    assert time.process_time() - start < 2
