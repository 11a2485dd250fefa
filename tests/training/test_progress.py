import os
import re
import subprocess
import sys

import jax
import pytest

from smallr.training.progress import Progress, log, table


def test_without_a_terminal_there_is_one_aligned_line_an_update(capfd):
    with Progress(0, 100) as progress:
        progress.update(1, loss=0.6931471, accuracy=0.5, tokens_per_second=1234.4, grad_norm=3.0)
        progress.update(10, loss=12.5, accuracy=1.0, tokens_per_second=98765.0)
        progress.update(100, loss=123456.0)
    out, err = capfd.readouterr()
    assert out == ""
    lines = err.splitlines()
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  "
    assert re.fullmatch(
        stamp + r"step   1/100  loss   0\.6931  accuracy  50\.0%      1,234 tokens/s  ETA 0:00:0\d", lines[0]
    )
    assert re.fullmatch(
        stamp + r"step  10/100  loss  12\.5000  accuracy 100\.0%     98,765 tokens/s  ETA 0:00:0\d", lines[1]
    )
    assert re.fullmatch(stamp + r"step 100/100  loss 1\.23e\+05  ETA 0:00:00", lines[2])
    assert len(lines[0]) == len(lines[1])
    assert "\x1b" not in err


def test_the_time_left_counts_this_session_alone(capfd, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("smallr.training.progress.time.monotonic", lambda: now[0])
    with Progress(90, 100) as progress:  # resumed at step 90
        now[0] += 8.0
        progress.update(90, loss=1.0)
        progress.update(92, loss=1.0)
        now[0] += 4000.0
        progress.update(93, loss=1.0)
    etas = [line.split("ETA")[1].strip() for line in capfd.readouterr().err.splitlines()]
    assert etas == ["?", "0:00:32", "2:35:52"]  # 8 s / 2 * 8;  4008 s / 3 * 7 = 9352 s


def test_other_processes_are_silent(capfd, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with Progress(0, 10) as progress:
        progress.update(1, loss=1.0)
    log("hello")
    assert capfd.readouterr() == ("", "")


def test_say_prints_to_standard_output(capfd):
    log("hello")
    assert capfd.readouterr() == ("hello\n", "")


_ON_A_TERMINAL = """
import time
from smallr.training.progress import Progress, log
with Progress(5, 20) as progress:
    for step in range(6, 21):
        progress.update(step, loss=0.5, accuracy=0.75, tokens_per_second=1000.0)
        time.sleep(0.02)
        if step == 10:
            log("in between")
"""


@pytest.mark.process
def test_on_a_terminal_one_line_renews_itself_and_files_stay_clean(tmp_path):
    ours, theirs = os.openpty()
    env = os.environ | {"TERM": "xterm-256color", "COLUMNS": "120", "JAX_PLATFORMS": "cpu"}
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen([sys.executable, "-c", _ON_A_TERMINAL], env=env, stdout=out, stderr=theirs)
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk
        except OSError:  # how a Linux terminal says end of file
            pass
        os.close(ours)
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "out").read_text() == "in between\n"
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert "step 20/20" in text
    assert "loss   0.5000  accuracy  75.0%      1,000 tokens/s  ETA 0:00:00" in text
    assert text.count("\n") <= 3  # renewed in place
    assert b"\x1b[?25h" in shown  # the cursor is back


def test_table_aligns_words_left_and_numbers_right():
    text = table(
        ("metric", "before", "after"), [("loss", 0.6931, "12.5"), ("accuracy", "", "87.5%"), ("naïve 模型", 1, -2)]
    )
    assert text.splitlines() == [
        "metric      before  after",
        "----------  ------  -----",
        "loss        0.6931   12.5",
        "accuracy            87.5%",
        "naïve 模型       1     -2",
    ]


def test_table_without_headers_has_no_header_line():
    assert table(("", ""), [("model", "tiny"), ("a", "b")]) == "model  tiny\na      b"
    assert table(("a", "b"), []) == "a  b\n-  -"


def test_table_with_a_short_row_is_an_error():
    with pytest.raises(ValueError, match="a row of the table has 1 cells, but there are 2 headers"):
        table(("a", "b"), [("x",)])
