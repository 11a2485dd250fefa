import json
import math
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto import event_pb2

from smallr.training.metrics import MetricsWriter, read_metrics
from smallr.training.tracking import TensorBoard


def _lines(workdir: Path) -> list[dict]:
    def reject(constant: str) -> float:
        raise AssertionError(f"not JSON: {constant}")

    text = (workdir / "metrics.jsonl").read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=reject) for line in text.splitlines()]


def with_tensorboard(workdir: Path, resume_step: int = 0) -> MetricsWriter:
    return MetricsWriter(workdir, resume_step, lambda: [TensorBoard(workdir / "tensorboard", resume_step)])


def _masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _events(workdir: Path) -> list[event_pb2.Event]:
    """The TFRecord framing read by hand: length, its checksum, data, its checksum."""
    events = []
    for path in sorted((workdir / "tensorboard").iterdir(), key=lambda p: p.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (length, length_crc) = struct.unpack("<QI", data[:12])
            assert _masked(crc32c(data[:8])) == length_crc
            record, (record_crc,) = data[12 : 12 + length], struct.unpack("<I", data[12 + length : 16 + length])
            assert _masked(crc32c(record)) == record_crc
            events.append(event_pb2.Event.FromString(record))
            data = data[16 + length :]
    return events


def test_lines_hold_step_time_split_and_numbers(tmp_path):
    with MetricsWriter(tmp_path / "new" / "run") as writer:
        writer.write(1, {"loss": np.float32(0.1), "tokens": 12, "accuracy": jnp.float32(0.5), "x": np.int64(3)})
        writer.write(1, {"loss": 2.0}, split="eval")
    lines = _lines(tmp_path / "new" / "run")
    assert [line.pop("time") > 1.7e9 for line in lines] == [True, True]
    assert lines == [
        {"step": 1, "split": "train", "loss": float(np.float32(0.1)), "tokens": 12, "accuracy": 0.5, "x": 3},
        {"step": 1, "split": "eval", "loss": 2.0},
    ]
    assert type(lines[0]["tokens"]) is int


def test_nan_and_infinities_are_valid_json_and_come_back(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": np.float32("nan")})
    assert {k: v for k, v in _lines(tmp_path)[0].items() if k in "abcd"} == {
        "a": "NaN",
        "b": "Infinity",
        "c": "-Infinity",
        "d": "NaN",
    }
    back = read_metrics(tmp_path)[0]
    assert math.isnan(back["a"])
    assert (back["b"], back["c"], back["split"]) == (math.inf, -math.inf, "train")


def test_tensorboard_files_hold_the_same_numbers(tmp_path):
    with with_tensorboard(tmp_path) as writer:
        writer.write(3, {"loss": 0.25, "learning_rate": 1e-6})
        writer.write(4, {"loss": 0.125}, split="eval")
        scalars = [(e.step, v.tag, v.simple_value) for e in _events(tmp_path) for v in e.summary.value]  # before close
    assert scalars == [
        (3, "train/loss", 0.25),
        (3, "train/learning_rate", pytest.approx(1e-6)),
        (4, "eval/loss", 0.125),
    ]


def test_there_need_be_no_tracker(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_resuming_drops_later_lines_and_keeps_each_step_once(tmp_path):
    with with_tensorboard(tmp_path) as writer:
        writer.write(0, {"loss": 0.0}, split="eval")
        for step in (1, 2, 3, 4):
            writer.write(step, {"loss": float(step)})
        writer.write(2, {"loss": 20.0}, split="eval")
    with with_tensorboard(tmp_path, 2) as writer:
        assert [(x["step"], x["split"]) for x in _lines(tmp_path)] == [
            (0, "eval"),
            (1, "train"),
            (2, "train"),
            (2, "eval"),
        ]
        writer.write(2, {"loss": -1.0}, split="eval")  # evaluated again at the checkpoint
        writer.write(3, {"loss": 30.0})
    assert [(x["step"], x["split"], x["loss"]) for x in _lines(tmp_path)] == [
        (0, "eval", 0.0),
        (1, "train", 1.0),
        (2, "train", 2.0),
        (2, "eval", 20.0),
        (3, "train", 30.0),
    ]
    starts = [(e.step, e.session_log.status) for e in _events(tmp_path) if e.HasField("session_log")]
    assert starts == [(3, event_pb2.SessionLog.START)]  # TensorBoard then forgets the old steps 3 and 4


def test_a_run_from_the_beginning_drops_all(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(0, {"loss": 0.0}, split="eval")
        writer.write(1, {"loss": 1.0})
    MetricsWriter(tmp_path, resume_step=0).close()
    assert _lines(tmp_path) == []


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_half_written_last_line_is_repaired(tmp_path, cut):
    with MetricsWriter(tmp_path) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": float(step)})
    path = tmp_path / "metrics.jsonl"
    os.truncate(path, path.stat().st_size - cut)
    kept = [1, 2, 3] if cut == 1 else [1, 2]  # without its newline alone, the line is whole
    assert [line["step"] for line in read_metrics(tmp_path)] == kept
    with MetricsWriter(tmp_path, resume_step=5) as writer:
        writer.write(6, {"loss": 6.0})
    assert [line["step"] for line in _lines(tmp_path)] == [*kept, 6]
    assert [p.name for p in tmp_path.iterdir() if "tmp" in p.name] == []


_ENDLESS = """
import sys
from smallr.training.metrics import MetricsWriter
from smallr.training.tracking import TensorBoard
from pathlib import Path
folder = Path(sys.argv[1]) / "tensorboard"
writer = MetricsWriter(sys.argv[1], 0, lambda: [TensorBoard(folder, 0)])
step = 0
while True:
    step += 1
    writer.write(step, {"loss": step / 2})
    print(step, flush=True)
"""


@pytest.mark.process
def test_sigkill_loses_at_most_the_last_line(tmp_path):
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        [sys.executable, "-c", _ENDLESS, str(tmp_path)], env=env, stdout=subprocess.PIPE, text=True
    ) as process:
        while int(process.stdout.readline()) < 50:
            pass
        process.send_signal(signal.SIGKILL)
        announced = max([50] + [int(line) for line in process.stdout.read().splitlines()])
    steps = [line["step"] for line in read_metrics(tmp_path)]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= announced
    tensorboard = [event.step for event in _whole_events(tmp_path) if event.summary.value]
    assert len(tensorboard) >= announced


def _whole_events(workdir: Path) -> list[event_pb2.Event]:
    (path,) = (workdir / "tensorboard").iterdir()
    data, end = path.read_bytes(), 0
    while end + 12 <= len(data):
        size = 16 + struct.unpack("<Q", data[end : end + 8])[0]
        if end + size > len(data):
            break
        end += size
    os.truncate(path, end)
    return _events(workdir)


def test_bad_values_and_names_are_refused(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        with pytest.raises(TypeError, match="metric 'loss' is not one number but ndarray of shape"):
            writer.write(1, {"loss": np.zeros(2)})
        with pytest.raises(TypeError, match="metric 'name' is not one number but str"):
            writer.write(1, {"name": "smallr"})
        with pytest.raises(ValueError, match="cannot be named 'step'"):
            writer.write(1, {"step": 1})
        writer.write(1, {"loss": 1.0})
    assert [line["loss"] for line in _lines(tmp_path)] == [1.0]


def test_only_process_zero_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with MetricsWriter(tmp_path / "run") as writer:
        writer.write(1, {"loss": 1.0})
    assert not (tmp_path / "run").exists()
