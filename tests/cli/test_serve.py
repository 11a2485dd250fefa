"""What a served model is called."""

from __future__ import annotations

from smallr.cli.serve import served_name


def test_a_model_is_called_by_its_folder_or_file_and_others_as_they_are(tmp_path, monkeypatch):
    (tmp_path / "runs" / "cogpo").mkdir(parents=True)
    (tmp_path / "small.gguf").write_text("")
    monkeypatch.chdir(tmp_path)
    assert served_name("runs/cogpo/") == "cogpo"
    assert served_name(str(tmp_path / "small.gguf")) == "small"
    assert served_name("owner/name") == "owner/name"
    monkeypatch.chdir(tmp_path / "runs")
    assert served_name(".") == "runs"
