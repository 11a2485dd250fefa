import hashlib
import itertools
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from smallr.core.sharding import make_mesh
from smallr.training import digest
from smallr.training.digest import leaf_signature, named_leaves, tree_digest

_M = 2**32


@pytest.fixture(scope="module", autouse=True, params=[digest._ON_HOST, -1], ids=["numpy", "programs"])
def _sums(request):
    """Small leaves are summed by numpy or, as large ones are, by programs: the digests are the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digest, "_ON_HOST", request.param)
        yield


def _reference_lanes(words: np.ndarray) -> list[int]:
    """The two lanes, one element at a time in Python integers."""
    sums = [0, 0]
    strides = [int(np.prod(words.shape[d + 1 :], dtype=object)) for d in range(words.ndim)]
    column_strides = [int(np.prod(words.shape[:d], dtype=object)) for d in range(words.ndim)]
    for index in np.ndindex(*words.shape):
        row = sum(i * s for i, s in zip(index, strides, strict=True))
        column = sum(i * s for i, s in zip(index, column_strides, strict=True))
        a = int(words[index]) ^ ((row * 0x9E3779B1 + 0x7F4A7C15) % _M)
        a = (a ^ (a >> 16)) * 0x85EBCA6B % _M
        a = (a ^ (a >> 13)) * 0xC2B2AE35 % _M
        a ^= a >> 16
        b = (a + column * 0x27D4EB2F) % _M
        b = (b ^ (b >> 16)) * 0x21F0AAAD % _M
        b = (b ^ (b >> 15)) * 0xD35A2D97 % _M
        b ^= b >> 15
        sums = [(sums[0] + a) % _M, (sums[1] + b) % _M]
    return sums


def _reference_digest(leaves: dict[str, tuple[str, tuple[int, ...], np.ndarray]]) -> str:
    text = "smallr-digest-1"
    for name in sorted(leaves):
        dtype, shape, words = leaves[name]
        text += "\n" + json.dumps([name, dtype, list(shape), _reference_lanes(words)])
    return hashlib.sha256(text.encode()).hexdigest()


def test_digest_equals_a_python_integer_reference():
    rng = np.random.default_rng(0)
    f32 = rng.standard_normal((3, 4, 2)).astype(np.float32)
    bf16 = rng.standard_normal((5,)).astype(ml_dtypes.bfloat16)
    i8 = rng.integers(-128, 128, (2, 3)).astype(np.int8)
    flags = np.array([True, False, True])
    u32 = np.uint32(4_000_000_000)
    tree = {
        "f": {"w": jnp.asarray(f32)},
        "b": jnp.asarray(bf16),
        "i": jnp.asarray(i8),
        "m": flags,
        "u": jnp.asarray(u32),
    }
    assert tree_digest(tree) == _reference_digest(
        {
            "f/w": ("float32", (3, 4, 2), f32.view(np.uint32)),
            "b": ("bfloat16", (5,), bf16.view(np.uint16)),
            "i": ("int8", (2, 3), i8.view(np.uint8)),
            "m": ("bool", (3,), flags.view(np.uint8)),
            "u": ("uint32", (), np.asarray(u32)),
        }
    )


def test_digest_is_stable_across_versions():
    # Checkpoints on disk carry digests: a change of this number makes every one of them unreadable.
    w = jnp.arange(6, dtype=jnp.float32).reshape(2, 3)
    tree = {"w": w, "n": jnp.int32(-1), "e": jnp.zeros((0, 4), jnp.bfloat16)}
    assert tree_digest(tree) == "908e27beff06c919bd27dce00ea9651a4198d8d9b718c0e591200bb9559858ad"


_DTYPES = st.sampled_from(
    [np.float32, ml_dtypes.bfloat16, np.float16, np.int32, np.uint32, np.int8, np.uint8, np.bool_, np.float64]
)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), dtype=_DTYPES, shape=hnp.array_shapes(min_dims=1, max_dims=2, min_side=1, max_side=3))
def test_any_changed_bit_changes_the_digest(data, dtype, shape):
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = data.draw(st.binary(min_size=size, max_size=size))
    if dtype is np.bool_:
        raw = bytes(byte & 1 for byte in raw)
    array = np.frombuffer(raw, dtype).reshape(shape)
    where = data.draw(st.integers(0, size - 1))
    bit = 0 if dtype is np.bool_ else data.draw(st.integers(0, 7))
    changed = bytearray(raw)
    changed[where] ^= 1 << bit
    other = np.frombuffer(bytes(changed), dtype).reshape(shape)
    place = (lambda a: a) if dtype is np.float64 else jnp.asarray
    assert tree_digest({"x": place(array)}) == tree_digest({"x": array})  # numpy and jax agree
    assert tree_digest({"x": place(array)}) != tree_digest({"x": place(other)})


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), data=st.data())
def test_moved_elements_change_the_digest(seed, data):
    array = np.random.default_rng(seed).standard_normal((4, 4)).astype(np.float32)
    i, j = data.draw(st.lists(st.integers(0, 15), min_size=2, max_size=2, unique=True))
    swapped = array.copy()
    swapped.flat[i], swapped.flat[j] = array.flat[j], array.flat[i]
    assert tree_digest({"x": jnp.asarray(array)}) != tree_digest({"x": jnp.asarray(swapped)})
    assert tree_digest({"x": jnp.asarray(array)}) != tree_digest({"x": jnp.asarray(array.T)})


def test_names_dtypes_and_shapes_are_part_of_the_digest():
    zeros = jnp.zeros((2, 3), jnp.float32)
    digests = {
        tree_digest(tree)
        for tree in (
            {"a": zeros},
            {"b": zeros},
            {"a": {"b": zeros}},
            {"a/b": zeros},
            {"a": zeros, "b": jnp.zeros((0,))},
            {"a": zeros.reshape(3, 2)},
            {"a": zeros.reshape(6)},
            {"a": zeros.astype(jnp.int32)},
            {"a": zeros.astype(jnp.bfloat16)},
            {"a": -zeros},
            {"a": jnp.zeros((0, 3))},
            {"a": jnp.zeros((3, 0))},
            {"a": jnp.float32(0)},
            {},
        )
    }
    assert len(digests) == 14


def test_nan_payloads_are_told_apart():
    quiet = np.array([0x7FC00000], np.uint32).view(np.float32)
    payload = np.array([0x7FC00001], np.uint32).view(np.float32)
    assert tree_digest({"x": jnp.asarray(quiet)}) == tree_digest({"x": jnp.asarray(quiet)})
    assert tree_digest({"x": jnp.asarray(quiet)}) != tree_digest({"x": jnp.asarray(payload)})


def test_order_and_python_classes_do_not_matter():
    class Moments(NamedTuple):
        mu: Any
        nu: Any

    a, b = jnp.arange(4.0), jnp.ones((2, 2), jnp.bfloat16)
    assert tree_digest({"a": a, "b": b}) == tree_digest({"b": b, "a": a})
    assert tree_digest({"s": Moments(a, b)}) == tree_digest({"s": {"mu": a, "nu": b}})
    assert tree_digest([a, b]) == tree_digest({"0": a, "1": b})
    layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    assert tree_digest(nnx.state(layer)) == tree_digest(nnx.to_pure_dict(nnx.state(layer)))


def test_names_of_flax_and_optax_trees_follow_the_leaves_order():
    layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    params = nnx.state(layer)
    tree = {"optimizer": optax.adam(1e-3).init(params), "params": params, "rng": jax.random.key(0)}
    named = named_leaves(tree)
    assert list(named) == [
        "optimizer/0/count",
        "optimizer/0/mu/bias",
        "optimizer/0/mu/kernel",
        "optimizer/0/nu/bias",
        "optimizer/0/nu/kernel",
        "params/bias",
        "params/kernel",
        "rng",
    ]
    assert all(x is y for x, y in zip(named.values(), jax.tree.leaves(tree), strict=True))
    assert leaf_signature(named["params/kernel"]) == ("float32", (2, 3))


def test_random_keys_and_their_implementation_count():
    key = jax.random.key(1)
    assert tree_digest({"k": key}) == tree_digest({"k": jax.random.key(1)})
    others = [jax.random.key(2), jax.random.key_data(key), jax.random.key(1, impl="rbg")]
    assert len({tree_digest({"k": k}) for k in [key, *others]}) == 4


def test_clashing_names_and_strange_leaves_are_named():
    with pytest.raises(ValueError, match="both named '1'"):
        tree_digest(OrderedDict([(1, jnp.zeros(1)), ("1", jnp.zeros(1))]))
    with pytest.raises(TypeError, match="leaf 'name' is not an array of numbers but str"):
        tree_digest({"name": "smallr"})


def digests(most: int) -> list[str]:
    """Of one tree: on a device, and on eight devices where there are, laid out in several ways.

    Args:
      most: leaves of up to so many elements are summed by numpy.
    """

    def tree(place: Callable) -> dict:
        return {
            "w": place(np.arange(64 * 16 * 8, dtype=np.float32).reshape(64, 16, 8) ** 0.5),
            "b": place(np.arange(4096).astype(jnp.bfloat16).reshape(64, 8, 8)),
            "i": place(np.arange(64 * 8 * 8, dtype=np.int32).reshape(64, 8, 8)),
        }

    digest._ON_HOST = most
    found = [tree_digest(tree(jnp.asarray))]
    if jax.device_count() == 8:
        specs = P(), P("data"), P(None, ("fsdp", "tensor")), P("data", "fsdp", "tensor"), P(("tensor", "data"), "fsdp")
        for mesh, spec in itertools.product((make_mesh(8, 1, 1), make_mesh(2, 2, 2)), specs):
            sharding = NamedSharding(mesh, spec)
            found.append(tree_digest(tree(lambda x: jax.device_put(x, sharding))))  # noqa: B023
    return found


@pytest.mark.process
def test_the_digest_is_the_same_on_any_mesh(eight_devices):
    most = digest._ON_HOST
    printed = eight_devices(
        "from tests.training.test_digest import digest, digests\n"
        f"most = digest._ON_HOST; print(*digests({most})); digest._ON_HOST = most"
    ).stdout
    found = digests(most) + printed.split()
    assert len(found) == 1 + 11
    assert len(set(found)) == 1, found


@pytest.mark.parametrize(
    "dtype", ["int4", "uint4", "bfloat16", "float8_e4m3fn", "complex64", ">f4", "int64", "complex128"]
)
def test_every_dtype_has_one_digest(dtype, monkeypatch):
    array = np.arange(-3, 3).astype(np.int8).astype(np.dtype(dtype)).reshape(2, 3)
    found = set()
    for most in (-1, 2**17):
        monkeypatch.setattr(digest, "_ON_HOST", most)
        native = array.astype(array.dtype.newbyteorder("="))
        found |= {tree_digest({"x": native})}
        if native.dtype.itemsize < 8 or dtype == "complex64":
            found |= {tree_digest({"x": jnp.asarray(native)})}
    assert len(found) == 1


def test_thirty_million_floats_are_quick():
    tree = {"w": jnp.ones((30, 1_000_000), jnp.float32)}
    tree_digest(tree)  # compile
    best = min(_timed(tree) for _ in range(3))
    assert best < 0.5, f"{best:.3f} s for 30M float32"


def _timed(tree: Any) -> float:
    start = time.perf_counter()
    tree_digest(tree)
    return time.perf_counter() - start
