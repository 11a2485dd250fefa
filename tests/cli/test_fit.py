"""`smallr fit`: what it prints can be run, and what does not fit is an exit code."""

from __future__ import annotations

import re

from smallr.cli.main import main


def test_it_names_rows_and_the_fields_to_set(capsys):
    assert main(["fit", "qwen2.5-1.5b", "--lora", "--base=int8", "--memory=24", "--accumulation=2"]) == 0
    shown = capsys.readouterr().out
    rows = {remat: int(count) for remat, count in re.findall(r"^(none|dots|full) +(\d+)", shown, re.MULTILINE)}
    assert 0 < rows["none"] < rows["dots"] < rows["full"]
    assert f"--lora --config.lora.base=int8 --config.batch.rows={2 * rows['dots']} " in shown


def test_a_model_that_does_not_fit(capsys):
    assert main(["fit", "llama-3.1-8b", "--memory=24"]) == 1
    assert "Not one row fits" in capsys.readouterr().out


def test_a_wrong_model_is_one_line(capsys):
    assert main(["fit", "tiny-randm"]) == 1
    assert "the nearest is 'tiny-random'" in capsys.readouterr().err


def test_a_quantised_base_that_cannot_be_read_on_the_device_is_said(capsys):
    options = ["fit", "llama-3.1-8b", "--lora", "--base=nf4"]
    assert main([*options, "--memory=14", "--row_length=512"]) == 0
    assert re.search(r"BUT the start needs 1\d\.\d GiB a device, more than there is", capsys.readouterr().out)
    assert main([*options, "--memory=24"]) == 0
    assert "BUT" not in capsys.readouterr().out
