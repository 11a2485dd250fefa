"""What each implementation of attention declares that it can and cannot do."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from smallr.core.sharding import make_mesh
from smallr.models import attention_stock, attention_support
from smallr.models.attention_support import CANDIDATES, SUPPORT, AttentionShape, DeviceFacts, unsupported
from smallr.models.config import ATTENTION
from smallr.models.sizes import SIZES

H100 = DeviceFacts("cuda", "NVIDIA H100 80GB HBM3", (9, 0))
A100 = DeviceFacts("cuda", "NVIDIA A100-SXM4-40GB", (8, 0))
T4 = DeviceFacts("cuda", "Tesla T4", (7, 5))
V5E = DeviceFacts("tpu", "TPU v5 lite")
SHAPE = AttentionShape(4, 2048, 14, 2, 64, "bfloat16", examples=8)


def _able(device: DeviceFacts, **changes) -> set[str]:
    shape = dataclasses.replace(SHAPE, **changes)
    return {impl for impl in SUPPORT if not unsupported(impl, shape, device)}


@pytest.mark.parametrize(
    ("device", "changes", "able"),
    [
        (H100, {}, {"cudnn_packed", "cudnn", "gpu", "xla"}),
        (H100, {"dtype": "float32"}, {"gpu", "xla"}),
        (H100, {"softcap": 50.0}, {"gpu", "xla"}),
        (H100, {"windows": (512,)}, {"cudnn", "gpu", "xla"}),
        (H100, {"windows": (None, 512)}, {"cudnn", "gpu", "xla"}),
        (H100, {"completions": 3}, {"cudnn", "gpu", "xla"}),
        (H100, {"completions": 0}, {"cudnn", "gpu", "xla"}),
        (H100, {"head_dim": 256}, {"cudnn_packed", "cudnn", "gpu", "xla"}),
        (H100, {"head_dim": 20}, {"gpu", "xla"}),
        (A100, {}, {"cudnn", "gpu", "xla"}),
        (A100, {"head_dim": 256}, {"gpu", "xla"}),
        (T4, {}, {"xla"}),
        (DeviceFacts("rocm", "AMD Instinct MI300X"), {}, {"xla"}),
        (V5E, {}, {"tpu", "splash", "xla"}),
        (V5E, {"windows": (512,), "softcap": 50.0}, {"tpu", "splash", "xla"}),
        (V5E, {"windows": (None, 512)}, {"tpu", "xla"}),
        (V5E, {"completions": 4}, {"tpu", "xla"}),
        (DeviceFacts("cpu", "cpu"), {}, {"xla"}),
    ],
)
def test_the_table(device, changes, able):
    assert _able(device, **changes) == able


def test_reasons_are_in_words(monkeypatch):
    assert unsupported("cudnn_packed", SHAPE, A100) == "it needs compute capability 9.0, NVIDIA A100-SXM4-40GB has 8.0"
    assert "this is cpu" in unsupported("cudnn", SHAPE, DeviceFacts("cpu", "cpu"))
    monkeypatch.setattr(attention_stock.jax, "__version__", "0.99.1")
    assert "it is known with JAX 0.10, 0.11, 0.12, this is 0.99.1" in unsupported("cudnn_packed", SHAPE, H100)
    without = {**SUPPORT, "gpu": dataclasses.replace(SUPPORT["gpu"], module="jax.experimental.pallas.gone")}
    monkeypatch.setattr(attention_support, "SUPPORT", without)
    assert "has no jax.experimental.pallas.gone any more" in unsupported("gpu", SHAPE, H100)


def test_everything_is_declared():
    assert set(SUPPORT) == set(ATTENTION) - {"auto"}
    for platform, names in CANDIDATES.items():
        assert set(names) == {name for name, needs in SUPPORT.items() if platform in (needs.platforms or (platform,))}


def test_the_shape_of_a_model_is_that_of_one_device():
    model = dataclasses.replace(SIZES["qwen2.5-0.5b"], window=512, full_layers=(0, 2), remat="dots")
    with jax.set_mesh(make_mesh(1, 1, -1)):
        shape = AttentionShape.of(model, 4, 2048, examples=6)
    assert (shape.rows, shape.heads, shape.kv_heads, shape.head_dim, shape.room) == (4, 14, 2, 64, 12)
    assert shape.windows == (None, 512)
    assert (shape.dtype, shape.remat) == (model.dtype, "dots")


def test_facts_of_this_device():
    facts = DeviceFacts.of(jax.devices()[0])
    assert facts.kind == jax.devices()[0].device_kind
    assert facts.platform in ("cpu", "cuda", "rocm", "tpu")
