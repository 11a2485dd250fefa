"""Flags of `smallr plan` that do not go together."""

from __future__ import annotations

from smallr.cli.main import main


def test_one_question_has_no_folder(capsys, tmp_path):
    assert main(["plan", "--db=my.sqlite", "--question=How many?", f"--out={tmp_path / 'out'}"]) == 2
    assert "--out is the folder of a benchmark; of one question --json prints all" in capsys.readouterr().err
    assert main(["plan"]) == 2
    assert "give --db and --question for one question" in capsys.readouterr().err
