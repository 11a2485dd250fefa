"""A whole check-up of a tiny model, its table and JSON, and what makes it fail."""

from __future__ import annotations

import io
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from smallr.cli.main import main
from smallr.core.errors import UserError
from smallr.doctor import attention, checkup, head, sampling, torch_step
from smallr.doctor.checkup import Options, check_up
from smallr.doctor.findings import Findings
from smallr.doctor.pairs import draw_lengths, make_step_rows, needed_flops
from smallr.models.config import DecoderConfig
from tests.doctor.small import measure_little

TINY = DecoderConfig(512, 2, 32, 4, 2, 8, 48, tie_embeddings=True)
QUICK = Options(quick=True, dtype="float32", models={"tiny": TINY})
PEER = {
    "seconds": 2.0,
    "peaks": {"float32": 1e11, "bfloat16": 2e11},
    "bytes": 2**30,
    "version": "2.0",
    "device": "2 threads",
    "compiled": False,
}


@pytest.fixture(scope="module")
def findings() -> Findings:
    """A check-up with a peer that is not run."""
    with pytest.MonkeyPatch.context() as patch:
        measure_little(patch)
        patch.setattr(torch_step, "is_installed", lambda: True)
        patch.setattr(torch_step, "run_peer", lambda *args: PEER)
        return check_up(Options(**{**vars(QUICK), "peer": "torch"}), lambda part: None)


@pytest.mark.slow
def test_every_section_has_numbers_and_nothing_disagrees(findings):
    sections = list(dict.fromkeys(each.section for each in findings.all))
    parts = ["attention rule", "attention", "head", "training step", "sampling"]
    assert sections == ["machine", "peer", "speed", *parts]
    assert not findings.wrong
    for section, name in (("speed", "matmul float32"), ("speed", "memory"), ("machine", "check-up")):
        assert all(value > 0 for value in findings.get(section, name).numbers.values())
    packed = findings.get("training step", "tiny, short prompts, float32: packed, prompts once").numbers
    assert packed["mfu"] == pytest.approx(
        packed["needed_flops"] / packed["seconds"] / findings.get("speed", "matmul float32").numbers["flops"]
    )
    ratio = findings.get("training step", "tiny, short prompts, float32: packed / padded")
    assert ratio.numbers["ratio"] > 0


@pytest.mark.slow
def test_the_peer_stands_beside_us_with_its_own_peak(findings):
    ours = findings.get("training step", "tiny, short prompts, float32: packed, prompts once").numbers
    both = findings.get("peer", "smallr / torch")
    assert both.numbers["ratio"] == pytest.approx(2.0 / ours["seconds"])
    assert findings.get("peer", "torch: matmul bfloat16").text == "0.2 TFLOP/s"
    theirs = findings.get("peer", "torch: training step").numbers
    assert theirs["pairs"] == ours["pairs"]
    assert theirs["mfu"] == pytest.approx(ours["needed_flops"] / 2.0 / 1e11)


@pytest.mark.slow
def test_the_table_and_the_file_say_the_same(findings):
    screen = io.StringIO()
    findings.show(Console(width=200, file=screen))
    shown = screen.getvalue()
    content = json.loads(findings.to_json())
    assert content["agrees"] is True
    for each in content["findings"]:
        assert each["name"] in shown


def _only(monkeypatch, error: float, more=()) -> None:
    """Leaves the rule of attention alone to be checked, with a given result, and then other parts."""
    monkeypatch.setattr(attention, "disagreement", lambda *args: error)
    monkeypatch.setattr(checkup.speed, "measure_device", lambda *args: {"bfloat16": 1.0})
    rules = {"attention rule": lambda: attention.check_rules(found[0], 8), **dict(more)}
    found: list[Findings] = []
    monkeypatch.setattr(checkup, "_parts", lambda findings, *args: found.append(findings) or rules)


def test_the_command_ends_with_1_where_something_disagrees(monkeypatch, tmp_path, capsys):
    _only(monkeypatch, 0.01)
    assert main(["doctor", "--quick", f"--out={tmp_path / 'doctor.json'}"]) == 1
    shown = capsys.readouterr()
    assert "DISAGREES: 1.0e-02 from the dense rule" in shown.out
    assert "doctor: attention rule …" in shown.err
    assert json.loads((tmp_path / "doctor.json").read_text())["agrees"] is False


def test_the_command_ends_with_0_where_all_agrees(monkeypatch, capsys):
    _only(monkeypatch, 1e-6)
    assert main(["doctor", "--quick"]) == 0
    assert "DISAGREES" not in capsys.readouterr().out


def test_what_is_over_the_minutes_is_left_out(monkeypatch):
    _only(monkeypatch, 1e-6)
    found = check_up(Options(quick=True, minutes=1e-9), lambda part: None)
    assert found.get("attention rule", "").text == "left out: 1e-09 minutes are over"


def test_a_part_that_fails_is_a_finding_and_the_others_are_measured(monkeypatch, tmp_path, capsys):
    def fails(message: str):
        raise RuntimeError(message)

    parts = {
        "attention": lambda: fails("no kernel image\nis available"),
        "training step: 1.5B, short prompts": lambda: fails("RESOURCE_EXHAUSTED: out of memory"),
    }
    _only(monkeypatch, float("inf"), parts)
    monkeypatch.setattr(checkup.speed, "measure_device", lambda *args: fails("no products"))
    assert main(["doctor", "--quick", f"--out={tmp_path / 'doctor.json'}"]) == 1
    shown = capsys.readouterr().out
    assert "failed: RuntimeError: no kernel image is available" in shown
    content = json.loads((tmp_path / "doctor.json").read_text(), parse_constant=pytest.fail)
    found = {each["section"]: each for each in content["findings"] if each["failed"] or each["wrong"]}
    assert {name: each["wrong"] for name, each in found.items()} == {
        "speed": True, "attention": True, "training step": False, "attention rule": True,
    }  # fmt: skip
    assert found["attention rule"]["numbers"]["error"] is None


def test_a_file_that_cannot_be_written_is_said_before_minutes_go_by(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(checkup, "check_up", lambda *args: pytest.fail("it was measured"))
    assert main(["doctor", f"--out={tmp_path}"]) == 1
    assert "is a folder where a file should be" in capsys.readouterr().err


def test_a_peer_that_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr(torch_step, "is_installed", lambda: False)
    with pytest.raises(UserError, match="PyTorch is not installed here; pip install torch"):
        check_up(Options(peer="torch"), lambda part: None)


def test_a_head_that_is_wrong_is_seen(monkeypatch):
    monkeypatch.setattr(head, "token_logps", lambda *args: 1.001 * head.dense_logps(*args))
    monkeypatch.setattr(head, "best_seconds", lambda *args: 1.0)
    findings = Findings()
    head.measure_head(findings, "float32", 16, 8, 50)
    assert findings.wrong[0].numbers["error"] == pytest.approx(1e-3, rel=0.01)


def test_an_attention_that_is_wrong_is_seen_and_one_that_raises_is_not(monkeypatch):
    trials = [attention_trial("gpu", error=0.1, note="it differs"), attention_trial("cudnn", note="RuntimeError: no")]
    trials.append(attention_trial("cudnn_packed", error=1e-6, note="a second call gives other bits"))
    monkeypatch.setattr(attention, "try_candidates", lambda *args: trials)
    findings = Findings()
    attention.measure_candidates(findings, "tiny", TINY, 1, 128)
    assert [each.wrong for each in findings.all] == [True, False, False]


def attention_trial(impl: str, **fields):
    from smallr.models.attention_choice import Trial

    return Trial(impl, **fields)


def test_sampling_is_of_one_process(monkeypatch):
    monkeypatch.setattr(sampling.jax, "process_count", lambda: 2)
    findings = Findings()
    sampling.measure_sampling(findings, "tiny", TINY, None, 1, 1)
    assert findings.all[0].text == "left out: the engine runs in one process"


def test_steps_of_both_layouts_hold_the_lengths_that_were_drawn():
    lengths = draw_lengths("short prompts", 40, 200)
    assert lengths == draw_lengths("short prompts", 40, 200)
    assert all(2 * p + c + r <= 200 for p, c, r in lengths)
    packed = make_step_rows(lengths, 2, 512, 99, shared=True)
    padded = make_step_rows(lengths, 2, 512, 99, shared=False)
    tokens = sum(sum(lengths[i]) for i in packed.pairs)
    assert int((packed.batch.horizon > 0).sum()) == tokens
    assert len(padded.pairs) == 2
    assert int((padded.batch.horizon > 0).sum()) == sum(lengths[i][0] + sum(lengths[i]) for i in padded.pairs)


def test_needed_work_counts_visible_pairs_by_hand():
    """A prompt of 2 and completions of 1 and 2 tokens: 3 + (2 + 1) + (4 + 3) pairs, 5 tokens, 3 of them scored."""
    assert needed_flops(TINY, [(2, 1, 2)]) == 3 * TINY.forward_flops(5, 13, 3)
    rule = make_step_rows([(2, 1, 2)], 1, 8, 99, shared=True).batch
    packing = attention.Packing(np.asarray(rule.horizon), np.asarray(rule.positions))
    assert attention._visible_pairs(packing) == 13


@pytest.mark.process
def test_collectives_are_measured_over_axes_of_several_devices(eight_devices):
    printed = eight_devices(
        "import jax\n"
        "from smallr.core.sharding import make_mesh\n"
        "from smallr.doctor.findings import Findings\n"
        "from smallr.doctor.speed import measure_collectives\n"
        "found = Findings()\n"
        "measure_collectives(found, make_mesh(1, 4, 2), True)\n"
        "print([(each.name, each.numbers['bytes_per_second'] > 0) for each in found.all])\n"
    ).stdout
    names = ["all_gather over fsdp", "all_reduce over fsdp", "all_gather over tensor", "all_reduce over tensor"]
    assert printed.strip() == str([(name, True) for name in names])


def test_one_device_has_no_collectives():
    from smallr.doctor.speed import measure_collectives

    findings = Findings()
    measure_collectives(findings, jax.make_mesh((1,), ("data",)), True)
    assert findings.all[0].text == "one device, so there are none"
