"""How the profile of a step shares out its seconds, and what it takes an instruction for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from benchmarks.hlo import parse
from benchmarks.step_profile import CONTAINERS, Event, kind_of, kinds_of, paired, shared_out
from benchmarks.step_share import Rate, Taken

PRODUCT = "%{name} = f32[{out}]{{1,0}} dot(%a, %b), lhs_contracting_dims={{{left}}}, rhs_contracting_dims={{0}}{source}"


def test_a_moment_is_shared_out_among_what_runs():
    spent = shared_out([Event(0.0, 10.0, "a"), Event(4.0, 6.0, "b"), Event(20.0, 21.0, "a")])
    assert spent == {"a": 10.0, "b": 1.0}


def test_what_is_left_to_other_threads_lasts_until_its_end():
    started = [Event(5.0, 6.0, "a"), Event(0.0, 1.0, "a"), Event(2.0, 3.0, "b")]
    assert paired(started, {"a": [4.0, 9.0]}) == [Event(0.0, 4.0, "a"), Event(2.0, 3.0, "b"), Event(5.0, 9.0, "a")]


def instruction(source: str, out: str = "8,16", left: int = 1, inputs: str = "8,4"):
    """An instruction of a program of its own, and the computation that it stands in."""
    attributes = f', metadata={{op_name="jit(step)/{source}"}}' if source else ""
    text = "\n".join(
        (
            "ENTRY %main (a: f32[1]) -> f32[1] {",
            f"  %a = f32[{inputs}]{{1,0}} parameter(0)",
            "  %b = f32[4,16]{1,0} parameter(1)",
            "  " + PRODUCT.format(name="it", out=out, left=left, source=attributes),
            "}",
        )
    )
    computations, entry = parse(text)
    return computations[entry]["it"], computations[entry]


@pytest.mark.parametrize(
    ("source", "flops", "kind"),
    [
        ("jvp()/while/body/closed_call/dot_general", 1, "layers: products forward"),
        ("jvp()/while/body/closed_call/mul", 0, "layers: other than products"),
        ("transpose(jvp())/while/body/closed_call/checkpoint/dot_general", 1, "layers: gradients of activations"),
        (
            "transpose(jvp())/while/body/closed_call/checkpoint/rematted_computation/dot_general",
            1,
            "layers: products computed again",
        ),
        ("jvp()/while/body/closed_call/attention/closed_call/while/body/dot_general", 1, "attention: products"),
        (
            "transpose(jvp())/while/body/closed_call/checkpoint/attention/while/body/exp",
            0,
            "attention: other than products",
        ),
        ("jvp(head)/while/body/closed_call/dot_general", 1, "head: products"),
        ("transpose(jvp(head))/while/body/closed_call/mul", 0, "head: other than products"),
        ("div", 0, "AdamW, norms of gradients, rest"),
    ],
)
def test_kinds_follow_from_where_an_instruction_stems_from(source, flops, kind):
    assert kind_of(*instruction(source), flops, tokens=1000) == kind


def test_a_gradient_of_weights_contracts_the_tokens():
    found, body = instruction("transpose(jvp())/while/body/closed_call/dot_general", "4,16", 0, "1000,4")
    assert kind_of(found, body, 2 * 4 * 16 * 1000, tokens=1000) == "layers: gradients of weights"


def test_a_compiled_program_is_read():
    """Each instruction counts, but for loops: what is in them is told of by itself."""
    compiled = (
        jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ x), x)).lower(jnp.ones((8, 8))).compile()
    )
    text = compiled.as_text()
    computations, _ = parse(text)
    opcodes = {name: found.opcode for body in computations.values() for name, found in body.items()}
    events = [Event(10.0 * i, 10.0 * i + 5, name) for i, name in enumerate(opcodes)]
    kinds = kinds_of(text, 8, events)
    told = sum(opcode not in CONTAINERS for opcode in opcodes.values())
    assert 0 < told < len(events)
    assert sum(kind.seconds for kind in kinds) == pytest.approx(told * 5e-9)
    assert sum(kind.flops for kind in kinds) >= 2 * 8**3


def test_shares_are_of_the_peak_by_seconds_and_by_cpu_seconds():
    assert Taken(2.0, 3.0, 150e9, Rate(100e9, 125e9), 0.7).shares(cores=2) == (0.75, 0.8)
