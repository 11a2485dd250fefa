"""Counting what a compiled program does."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from benchmarks.chips import CHIPS, slice_of, wire_bandwidth
from benchmarks.hlo import analyse, replica_groups

# A loop of 7 trips around a gather, as TPU programs are written: the limit is in the condition, the start in the tuple.
LOOP = """HloModule m
%body (p: (s32[], bf16[16,8])) -> (s32[], bf16[16,8]) {
  %p = (s32[]{:T(128)}, bf16[16,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %one = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %one)
  %x = bf16[16,8]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %part = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} slice(%x), slice={[0:4], [0:8]}
  %whole = bf16[16,8]{1,0:T(8,128)(2,1)} all-gather(%part), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  ROOT %out = (s32[]{:T(128)}, bf16[16,8]{1,0:T(8,128)(2,1)}) tuple(%next, %whole)
}
%condition (p: (s32[], bf16[16,8])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, bf16[16,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %limit = s32[]{:T(128)} constant(15)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}
ENTRY %main (x: bf16[16,8]) -> bf16[16,8] {
  %x.1 = bf16[16,8]{1,0:T(8,128)(2,1)} parameter(0)
  %start = s32[]{:T(128)} constant(1)
  %state = (s32[]{:T(128)}, bf16[16,8]{1,0:T(8,128)(2,1)}) tuple(%start, %x.1)
  %loop = (s32[]{:T(128)}, bf16[16,8]{1,0:T(8,128)(2,1)}) while(%state), condition=%condition, body=%body
  %y = bf16[16,8]{1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
  ROOT %reduced = bf16[16,8]{1,0:T(8,128)(2,1)} all-reduce(%y), channel_id=2, replica_groups={}, to_apply=%add
}
"""


def test_a_loop_counts_its_trips():
    program = analyse(LOOP, devices=8)
    gather, reduced = sorted(program.collectives, key=lambda collective: collective.kind)
    assert (gather.times, gather.groups) == (7, ((0, 2, 4, 6), (1, 3, 5, 7)))
    assert gather.received == 7 * 16 * 8 * 2 * 3 / 4
    assert reduced.received == 2 * 16 * 8 * 2 * 7 / 8
    # A trip adds two numbers, reads a slice into on-chip memory, and writes what was gathered.
    assert program.hbm_bytes == 7 * (3 * 4 + 4 * 8 * 2 + 16 * 8 * 2) + 2 * 16 * 8 * 2


def test_branches_run_as_often_as_each_other():
    def branch(width: int):
        return lambda x: x[:, :width] @ x[:width, :]

    def choose(i, x):
        return jax.lax.switch(i, [branch(width) for width in (8, 16, 32)], x)

    arguments = jax.ShapeDtypeStruct((), "int32"), jax.ShapeDtypeStruct((64, 64), "float32")
    program = analyse(jax.jit(choose).lower(*arguments).compile().as_text(), devices=1)
    assert program.flops == 2 * 64 * 64 * (8 + 16 + 32) / 3


FETCHED = """HloModule m
ENTRY %main (x: s8[4096]) -> s8[1024] {
  %x = s8[4096]{0:T(1024)(128)(4,1)} parameter(0)
  %begun = ((s8[4096]{0:T(1024)(128)(4,1)}), s8[1024]{0:T(1024)(128)(4,1)S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:1024]}
  %part = s8[1024]{0:T(1024)(128)(4,1)S(1)} slice-done(%begun)
  %sent = (s8[1024]{0:T(1024)(128)(4,1)}, s8[1024]{0:T(1024)(128)(4,1)S(1)}, u32[]{:S(2)}) copy-start(%part)
  ROOT %out = s8[1024]{0:T(1024)(128)(4,1)} copy-done(%sent)
}
"""


def test_what_is_fetched_ahead_counts_once_and_only_its_part():
    assert analyse(FETCHED, devices=1).hbm_bytes == 1024 + 1024


@pytest.mark.parametrize(
    ("written", "groups"),
    [
        ("replica_groups={{0,3},{1,2}}, x", ((0, 3), (1, 2))),
        ("replica_groups=[2,2]<=[4], dimensions={0}", ((0, 1), (2, 3))),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}, x", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x", ((0, 1, 2, 3),)),
    ],
)
def test_groups_in_every_spelling(written, groups):
    assert replica_groups(written, 4) == groups


def test_products_in_scans_and_gradients_are_counted_in_full():
    def loss(w, x):
        return jnp.sum(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0])

    w, x = jnp.ones((5, 24, 24)), jnp.ones((10, 24))
    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(w, x).compile().as_text()
    assert analyse(text, devices=1).flops == 3 * 5 * 2 * 10 * 24 * 24


def test_a_convolution_counts_the_products_that_it_makes():
    # A batched product in the way of TPU programs: 3 products of [4, 5] and [5, 6], the other positions of the window
    # meet only padding.
    text = """HloModule m
ENTRY %main (a: f32[3,4,5], b: f32[3,6,5]) -> f32[3,4,6] {
  %a = f32[3,4,5]{2,1,0} parameter(0)
  %b = f32[3,6,5]{2,1,0} parameter(1)
  ROOT %c = f32[3,4,6]{2,1,0} convolution(%a, %b), window={size=3 stride=2 pad=2_2 lhs_dilate=3}, dim_labels=0bf_0oi->0bf
}
"""
    assert analyse(text, devices=1).flops == 3 * 2 * 4 * 5 * 6


def test_wires_of_lines_and_rings():
    v5e, v5p = CHIPS["v5e"], CHIPS["v5p"]
    row, square = [(0, y, 0) for y in range(4)], [(x, y, 0) for x in range(4) for y in range(4)]
    assert wire_bandwidth(v5e, (4, 4), row) == 50e9  # the chip at the end of a line has one wire
    assert wire_bandwidth(v5e, (4, 4), square) == 100e9
    assert wire_bandwidth(v5e, (16, 16), [(0, y, 0) for y in range(16)]) == 100e9
    assert wire_bandwidth(v5p, (4, 4, 8), [(0, 0, z) for z in range(8)]) == 200e9
    assert slice_of("v5p:4x4x8") == ("v5p", (4, 4, 8))
