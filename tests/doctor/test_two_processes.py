"""Two processes: both take the attention that process 0 has found, and both go through a check-up."""

from __future__ import annotations

import socket

import pytest

from tests.runs import environment

TOLD = ("choice", "doctor", "collective", "sampling")
_TWO = """
import sys, jax
index, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=index)
from smallr.core.programs import keep_programs
keep_programs()
from tests.compiling import compile_as_tests_do
compile_as_tests_do()
from smallr.doctor import checkup
from smallr.models.attention_choice import choose
from smallr.models.attention_dense import dense_attention
from smallr.models.attention_support import AttentionShape, DeviceFacts
from smallr.models.config import DecoderConfig

shape = AttentionShape(1, 32, 2, 1, 8, "float32", examples=4)
calls = []
def seconds(program, *args):
    calls.append(1)
    return {0: [1.0, 2.0], 1: [2.0, 1.0]}[index][len(calls) - 1]  # process 1 would choose the other
right = lambda *args: dense_attention(*args)
broken = lambda *args: 1 / 0
choice = choose(shape, DeviceFacts("cuda", "an H100", (9, 0)), None, {"gpu": right, "cudnn": broken, "xla": right}, seconds)
print("choice", choice.impl, len(calls), choice.trials[1].note, flush=True)

import pytest
from tests.doctor.small import measure_little
measure_little(pytest.MonkeyPatch())
tiny = DecoderConfig(512, 1, 32, 4, 2, 8, 48, tie_embeddings=True)
checkup.check_rules = lambda *args: None
checkup.measure_candidates = lambda *args: None
found = checkup.check_up(checkup.Options(quick=True, dtype="float32", models={"tiny": tiny}), lambda part: None)
assert not found.wrong
step = found.get("training step", "tiny, short prompts, float32: packed, prompts once")
print("doctor", found.get("machine", "devices").numbers["processes"], step.numbers["pairs"], flush=True)
print("collective", found.get("speed", "all_reduce over fsdp").numbers["bytes_per_second"] > 0, flush=True)
print("sampling", found.get("sampling", "tiny").text, flush=True)
"""


@pytest.mark.process
def test_two_processes_agree_on_attention_and_go_through_a_check_up(tmp_path, forks):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    outputs = forks.run(
        [["-c", _TWO, str(index), port] for index in range(2)],
        [environment(1, SMALLR_CACHE=str(tmp_path / str(index))) for index in range(2)],
    )
    told = [dict(line.split(" ", 1) for line in out.splitlines() if line.split(" ")[0] in TOLD) for out in outputs]
    note = "ZeroDivisionError: division by zero"
    assert told[0].pop("choice") == f"gpu 2 {note}"
    assert told[1].pop("choice") == f"gpu 0 {note}", "process 1 has measured nothing"
    assert told[0] == told[1]
    assert told[0]["doctor"].startswith("2 ")
    assert told[0]["collective"] == "True"
    assert told[0]["sampling"] == "left out: the engine runs in one process"
