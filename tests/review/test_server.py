"""The server: who is let in, what is answered, and what a kill leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from http.client import HTTPException

import pytest

from smallr.language.serving.run import Server, bind
from smallr.review.decisions import Decisions, read_all
from smallr.review.folders import open_set
from smallr.review.server import make_app
from smallr.review.session import Session
from tests.review.made import browser, crv_row, write_lines
from tests.runs import ROOT

TOKEN = "token-of-the-test"
ATTACK = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


@contextmanager
def serving(path, reviewer="ann", ticket="", **options):
    """Serves a review from a thread; gives the address and the session."""
    reviewed = open_set(path)
    decisions = Decisions(reviewed.home, reviewer)
    session = Session(reviewed, decisions, **options)
    sock = bind("127.0.0.1", 0)
    sock.listen()
    server = Server(make_app(session, TOKEN, ticket), "")
    server.install_signal_handlers = lambda: None
    thread = threading.Thread(target=server.run, args=([sock],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}", session
    finally:
        server.should_exit = True
        thread.join()
        decisions.close()


def ask(address, path="", fields=None, **headers):
    """(status, body, headers) of a request."""
    data = None if fields is None else json.dumps(fields).encode()
    kind = {} if fields is None else {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/{path}", data, {**kind, **headers})
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, reply.read(), reply.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def test_who_is_let_in(tmp_path):
    with serving(write_lines(tmp_path / "rows.jsonl", [crv_row(0)])) as (address, session):
        status, page, headers = ask(address, f"{TOKEN}/")
        assert (status, b"review.js" in page) == (200, True)
        assert "script-src 'self'" in headers["content-security-policy"]
        assert headers["access-control-allow-origin"] is None
        assert ask(address, TOKEN)[1] == page  # led to the address with a slash
        for path in ("", "api/state", "wrong/", "wrong/api/state", f"{TOKEN}x/", f"{TOKEN[:-1]}/", "%C3%A9/"):
            status, body, _ = ask(address, path)
            assert status == 403, path
            assert "lacks the token" in json.loads(body)["error"]["message"]
            assert b"What is" not in body
        status, body, _ = ask(address, f"{TOKEN}/api/state", Host="evil.example")
        assert status == 403
        assert "open the address" in json.loads(body)["error"]["message"]
        assert ask(address, f"{TOKEN}/api/state", Host="localhost:1")[0] == 200
        plain = {"Content-Type": "text/plain"}  # what a form of another page can send
        assert ask(address, f"{TOKEN}/api/undo", {}, **plain)[0] == 415
        assert not session.decisions.all()["ann"]


def test_a_ticket_lets_in_once(tmp_path):
    with serving(write_lines(tmp_path / "rows.jsonl", [crv_row(0)]), ticket="once") as (address, _):
        status, page, _ = ask(address, "once/")
        assert (status, b"review.js" in page) == (200, True)  # led to the address with the token
        assert ask(address, "once/")[0] == 403
        assert ask(address, f"{TOKEN}/")[0] == 200
        assert ask(address, "")[0] == 403  # a ticket that is used up is not an empty one


def test_bad_requests_are_one_line(tmp_path):
    with serving(write_lines(tmp_path / "rows.jsonl", [crv_row(0)])) as (address, _):
        made = json.loads(ask(address, f"{TOKEN}/api/queues", {})[1])
        right = {"queue": made["queue"], "position": 0, "digest": "x", "decision": "accepted", "text": ""}
        for path, fields, status in (
            ("api/queues", {"order": "size"}, 400),
            ("api/queues", {"colour": "red"}, 400),
            ("api/queues", {"sample": "many"}, 400),
            ("api/decisions", {**right, "digest": 3}, 400),
            ("api/decisions", {**right, "position": 7}, 404),
            ("api/decisions", {**right, "queue": 99}, 404),
            ("api/decisions", right, 409),
        ):
            found, body, _ = ask(address, f"{TOKEN}/{path}", fields)
            assert found == status, (path, fields, body)
            assert "\n" not in json.loads(body)["error"]["message"]
        assert ask(address, f"{TOKEN}/api/queues/99")[0] == 404
        assert ask(address, f"{TOKEN}/nothing")[0] == 404


@pytest.mark.process
@pytest.mark.slow
def test_keys_decide_in_a_browser(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [crv_row(i, rewrite=ATTACK if i == 1 else "") for i in range(8)])
    with serving(path) as (address, session), browser(tmp_path / "profile") as page:
        rows = session.reviewed.rows

        def said():
            return {
                row.number: found.decision for row in rows if (found := session.decisions.all()["ann"].get(row.key))
            }

        def at(number):
            page.until(f"document.getElementById('facts').innerText.startsWith('{number + 1} of')")

        page.open(f"{address}/{TOKEN}/")
        assert page.text("title") == "What is 0 + 1?"
        assert page.value("document.querySelector('#side ins').innerText.trim()") == "We add 1 to"
        page.press("a")
        at(1)
        assert ATTACK in page.text("side")  # shown as it is, and not run
        assert page.value("document.querySelectorAll('article img, article script').length") == 0
        assert page.value("document.title") == "review: CRV rows"
        page.press("r")
        at(2)
        page.press("u")
        at(3)
        page.press("e")
        page.until("document.activeElement.id === 'text'")
        page.value("document.getElementById('text').value = ''")
        page.write("area")  # letters are text here, not keys
        page.press("Enter", control=True)
        at(4)
        assert said() == {0: "accepted", 1: "rejected", 2: "unsure", 3: "edited"}
        assert session.decisions.all()["ann"][rows[3].key].text == "area"
        page.press("e")
        page.press("Escape")
        page.press("ArrowRight")
        at(5)
        page.press("p")
        at(4)
        page.press("z")
        at(3)
        page.until("document.getElementById('notice').innerText === 'Undone.'")
        assert 3 not in said() or said()[3] == ""
        page.press("?")
        assert page.value("document.getElementById('help').open")
        page.press("Escape")
        page.value("document.getElementById('help').close()")
        bob = Decisions(session.reviewed.home, "bob")
        bob.add(rows[3], "rejected")
        bob.close()
        page.press("a")
        page.until("document.getElementById('notice').innerText.includes('bob has rejected this row')")
        assert "the row is disputed" in page.text("notice")
        page.resize(390, 844)
        page.press("p")
        page.picture(tmp_path / "phone.png")
        assert page.value("document.documentElement.scrollWidth") <= 390
        sizes = "[...document.querySelectorAll('#actions button')].map((b) => b.getBoundingClientRect().height)"
        assert min(page.value(sizes)) >= 34  # a finger finds them
        assert page.value("parseFloat(getComputedStyle(document.querySelector('#side pre')).fontSize)") >= 16


@pytest.mark.process
@pytest.mark.slow
def test_ten_thousand_rows_do_not_lag(tmp_path):
    lines = [{"id": str(i), "prompt": f"Question {i}", "completion": f"Answer {i}. " * 20} for i in range(10_000)]
    with (
        serving(write_lines(tmp_path / "rows.jsonl", lines)) as (address, session),
        browser(tmp_path / "profile") as page,
    ):
        page.open(f"{address}/{TOKEN}/")
        assert page.value("document.querySelectorAll('#rows li').length") == 50
        waits = []
        for number in range(12):
            page.press("a")
            waits.append(page.until(f"document.getElementById('facts').innerText.startsWith('{number + 2} of')"))
        start = time.perf_counter()
        page.value("document.getElementById('forward').click()")
        page.until("document.getElementById('range').innerText.startsWith('51')")
        paged = time.perf_counter() - start
        print(f"10,000 rows: key to next row {sorted(waits)[6]:.3f} s, a page {paged:.3f} s")
        assert sorted(waits)[6] < 0.3
        assert paged < 1
        assert len(session.decisions.all()["ann"]) == 12


@pytest.mark.process
@pytest.mark.slow
def test_decisions_survive_kill_9(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [crv_row(i) for i in range(40)])
    command = [sys.executable, "-m", "smallr", "review", str(path), "--reviewer=ann"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        line = process.stdout.readline()
        address = line.split()[-1].rstrip("/")
        assert address.startswith("http://127.0.0.1:")
        made = json.loads(ask(address, "api/queues", {})[1])
        told = []

        def work():
            with suppress(OSError, ValueError, HTTPException):  # until the server is gone
                for position in range(made["total"]):
                    row = json.loads(ask(address, f"api/queues/{made['queue']}/{position}")[1])
                    fields = {"queue": made["queue"], "position": position, "digest": row["digest"]}
                    if ask(address, "api/decisions", {**fields, "decision": "accepted", "text": ""})[0] == 200:
                        told.append(row["key"])

        worker = threading.Thread(target=work)
        worker.start()
        while len(told) < 10:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        worker.join()
    finally:
        process.kill()
        process.wait()
    reviewed = open_set(path)
    kept = read_all(reviewed.home)["ann"]
    assert set(told) <= set(kept)  # all that the page was told of
    assert len(kept) <= len(told) + 1
    with serving(path) as (address, _):  # the lock of the dead is taken over
        assert json.loads(ask(address, f"{TOKEN}/api/state")[1])["open"] == 40 - len(kept)
