"""The page on runs: what it holds of one run and of several, of a run under way, and of folders that are none."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
from matplotlib.image import imread

from smallr.cli.main import main
from tests.runs import smoke, train


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of two steps that differ in their learning rate."""
    folder = tmp_path_factory.mktemp("runs")
    for name, rate in (("slow", 1e-4), ("fast", 1e-3)):
        config = smoke("sft")
        config.steps, config.optimizer.learning_rate = 2, rate
        train(config, folder / name)
    return folder


def page_of(capsys, *arguments):
    assert main(["report", *map(str, arguments)]) == 0
    return open(capsys.readouterr().out.strip().splitlines()[-1]).read()


@pytest.mark.slow
def test_a_run_has_its_curves_tables_and_settings(runs, capsys):
    page = page_of(capsys, runs / "slow", "--samples=2")
    charts = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert charts[:3] == ["loss", "token_accuracy", "nll_answer_token"]
    assert {"entropy", "learning_rate", "grad_norm"} <= set(charts)
    assert "epoch" not in charts
    assert "finished, 2 steps" in page
    samples = json.loads((runs / "slow" / "samples.json").read_text())["samples"]
    assert len(samples) == 2
    assert page.count("before training<pre>") == 2
    after = json.loads((runs / "slow" / "report.json").read_text())["after"]
    assert f"{after['token_accuracy']:.4f}" in page
    assert "src=" not in page
    assert "http" not in page.replace("http://www.w3.org", "")  # it needs nothing beside it


@pytest.mark.slow
def test_two_runs_are_named_by_what_differs_and_compared(runs, capsys, tmp_path):
    page = page_of(capsys, runs / "slow", runs / "fast", f"--to={tmp_path / 'both.html'}")
    assert "<h1>slow, fast</h1>" in page
    (differing,) = re.findall(r"Settings that differ</h2>\n<table>(.*?)</table>", page, re.DOTALL)
    assert re.findall(r"<th>([a-z._]+)</th>", differing)[-1] == "optimizer.learning_rate"
    assert "0.0001" in differing
    assert "slow train, step 2" in page
    assert "fast eval, step 2" in page


def test_a_run_under_way_is_shown_and_a_folder_that_is_none_is_named(tmp_path, capsys):
    run = tmp_path / "a" / "run"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"config": smoke("sft").to_dict()}, default=list))
    assert main(["report", str(run)]) == 1
    assert "the run has no metrics yet" in capsys.readouterr().err
    (run / "metrics.jsonl").write_text('{"step": 3, "time": 1.5, "split": "train", "loss": "NaN", "a<b": 1}\n')
    page = page_of(capsys, run)
    assert "at step 3" in page
    (run / "metrics.jsonl").write_text('{"step": 3, "time": 1.5, "split": "train", "loss": "abc"}\n')
    assert "at step 3" in page_of(capsys, run)
    (run / "samples.json").write_text("{}")
    assert main(["report", str(run)]) == 1
    assert "samples.json is damaged" in capsys.readouterr().err
    (run / "config.json").write_text('{"method": "crv"}')
    assert main(["report", str(run)]) == 1
    assert "config.json is damaged" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 1
    assert "not a run (it has no config.json)" in capsys.readouterr().err
    assert main(["report", str(run), str(run)]) == 1
    assert capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("width", [1440, 420])
def test_a_browser_draws_it_on_a_wide_screen_and_on_a_phone(runs, tmp_path, capsys, width):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs a browser: apt install chromium")
    page, picture = tmp_path / "page.html", tmp_path / "page.png"
    assert main(["report", str(runs / "slow"), str(runs / "fast"), f"--to={page}"]) == 0
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},2000"]
    subprocess.run([*command, f"--screenshot={picture}", page.as_uri()], check=True, capture_output=True, timeout=120)
    drawn = imread(picture)[..., :3]
    assert drawn.shape[:2] == (2000, width)
    blue, red = ((37, 99, 235), (220, 38, 38))  # the two runs' colours
    for colour in (blue, red):
        assert (abs(drawn * 255 - colour).max(-1) < 40).sum() > 200
    inked = (drawn.min(-1) < 0.7).any(0)
    assert inked[: width // 2].any()
    assert inked[width // 2 :].any()
