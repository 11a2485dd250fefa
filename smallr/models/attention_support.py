"""Declares what each implementation of attention can do: on which devices, for which shapes and rules.

What is declared here is not tried. What is not declared impossible is still checked on the device before it is used
(`attention_choice`).
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping

import jax
from jaxtyping import Array, Int

from smallr.core.sharding import parts
from smallr.models.attention import default_sequences
from smallr.models.attention_stock import PACKED_VERSIONS, version
from smallr.models.attention_unshared import COPIES
from smallr.models.config import DecoderConfig

# In the order in which they are tried. Other platforms have "xla" alone.
CANDIDATES: Mapping[str, tuple[str, ...]] = {
    "cuda": ("cudnn_packed", "cudnn", "gpu", "xla"),
    "tpu": ("tpu", "splash", "xla"),
}
INTERPRETED = ("tpu", "gpu", "splash")  # run on any platform, far too slowly but for tests


@dataclasses.dataclass(frozen=True)
class DeviceFacts:
    """Holds what decides which kernels a device runs.

    Attributes:
      platform: cpu | cuda | rocm | tpu.
      kind: of the device, in the vendor's words.
      capability: of a GPU of NVIDIA, e.g. (9, 0); empty for others.
      runtime: versions of what compiles and runs programs there.
    """

    platform: str
    kind: str
    capability: tuple[int, ...] = ()
    runtime: str = ""

    @classmethod
    def of(cls, device: jax.Device) -> DeviceFacts:
        """Reads them from a device of JAX."""
        runtime = str(device.client.platform_version)
        platform = device.platform
        if platform == "gpu":
            platform = "rocm" if "rocm" in runtime.lower() else "cuda"
        capability = tuple(int(part) for part in str(getattr(device, "compute_capability", "")).split(".") if part)
        return cls(platform, device.device_kind, capability if platform == "cuda" else (), runtime)


@dataclasses.dataclass(frozen=True)
class AttentionShape:
    """Holds what one device has to compute in a layer.

    Attributes:
      rows, length: of a micro-batch on one device.
      heads, kv_heads, head_dim: on one device.
      dtype: of q, k and v.
      windows: of the layers, each once; more than one are traced.
      softcap, scale: of the scores; as in `attention`.
      examples: of a row at most; 0: not known.
      completions: of an example at most; 0: not known.
      remat: what the backward pass computes again.
    """

    rows: int
    length: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    windows: tuple[int | None, ...] = (None,)
    softcap: float | None = None
    scale: float | None = None
    examples: int = 0
    completions: int = 2
    remat: str = "none"

    @classmethod
    def of(
        cls, model: DecoderConfig, rows: int, length: int, *, examples: int = 0, completions: int = 2
    ) -> AttentionShape:
        """Reads the shape of a model on `rows` rows, split over the mesh (`jax.set_mesh`)."""
        split = parts("kv_heads", model.num_kv_heads)
        windows = sorted(set(model.layer_windows), key=lambda window: window or 0)
        return cls(
            rows // parts("batch", rows),
            length,
            model.num_heads // split,
            model.num_kv_heads // split,
            model.head_dim,
            model.dtype,
            tuple(windows),
            model.attention_softcap,
            model.query_scale,
            examples,
            completions,
            model.remat,
        )

    @property
    def room(self) -> int:
        """Returns for how many completions of a row implementations that unshare make room."""
        return self.examples * self.completions or default_sequences(self.length)

    def traced_windows(self, values: Int[Array, "*layers"]) -> Int[Array, "*layers"] | int | None:
        """Returns the window as a layer passes it: `values` where layers differ, else the one of all."""
        return values if len(self.windows) > 1 else self.windows[0]


@dataclasses.dataclass(frozen=True)
class Support:
    """Declares what an implementation can do.

    Attributes:
      platforms: on which it is compiled; empty: all.
      capability: least one of a GPU of NVIDIA.
      dtypes: of q, k and v.
      head_multiple: of which a head's dimension is a multiple.
      head_most: a head's largest dimension, and the largest from compute capability 9.0 on.
      softcap: whether it knows soft-caps.
      windows: none | static | traced; what it knows includes what stands before.
      completions: of an example at most; 0: any number.
      versions: of JAX; empty: all.
      module: that it needs; empty: none.
    """

    platforms: tuple[str, ...] = ()
    capability: tuple[int, int] = (0, 0)
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    head_multiple: int = 1
    head_most: tuple[int, int] = (1024, 1024)
    softcap: bool = True
    windows: str = "traced"
    completions: int = 0
    versions: tuple[str, ...] = ()
    module: str = ""


_CUDNN = Support(("cuda",), (8, 0), ("bfloat16",), 8, (128, 256), softcap=False)
SUPPORT: Mapping[str, Support] = {
    "xla": Support(),
    "tpu": Support(("tpu",)),
    "gpu": Support(("cuda",), (8, 0), head_most=(512, 512), module="jax.experimental.pallas.triton"),
    "cudnn": _CUDNN,
    "cudnn_packed": dataclasses.replace(
        _CUDNN, capability=(9, 0), windows="none", completions=COPIES, versions=PACKED_VERSIONS
    ),
    "splash": Support(("tpu",), windows="static", completions=COPIES),
}


def unsupported(impl: str, shape: AttentionShape, device: DeviceFacts) -> str:
    """Says why an implementation cannot compute a shape on a device; empty if nothing speaks against it."""
    needs = SUPPORT[impl]
    if needs.platforms and device.platform not in needs.platforms:
        return f"it is for {' and '.join(needs.platforms)}, this is {device.platform}"
    return _device_lacks(needs, device) or _shape_exceeds(needs, shape, device)


def _device_lacks(needs: Support, device: DeviceFacts) -> str:
    if device.platform == "cuda" and device.capability < needs.capability:
        have, need = (".".join(map(str, each)) for each in (device.capability, needs.capability))
        return f"it needs compute capability {need}, {device.kind} has {have or 'an unknown one'}"
    if needs.versions and version() not in needs.versions:
        return f"it is known with JAX {', '.join(needs.versions)}, this is {jax.__version__}"
    if needs.module and importlib.util.find_spec(needs.module) is None:
        return f"JAX {jax.__version__} has no {needs.module} any more"
    return ""


def _shape_exceeds(needs: Support, shape: AttentionShape, device: DeviceFacts) -> str:
    most = needs.head_most[device.capability >= (9, 0)]
    traced = len(shape.windows) > 1
    if shape.dtype not in needs.dtypes:
        return f"it computes in {' and '.join(needs.dtypes)} alone, not in {shape.dtype}"
    if shape.head_dim % needs.head_multiple or shape.head_dim > most:
        return f"heads of {shape.head_dim} must be a multiple of {needs.head_multiple} and at most {most}"
    if shape.softcap is not None and not needs.softcap:
        return "it knows no soft-cap of the scores"
    if traced and needs.windows != "traced":
        return "it knows no windows that differ from layer to layer"
    if shape.windows != (None,) and needs.windows == "none":
        return "it knows no window"
    if needs.completions and not 0 < shape.completions <= needs.completions:
        return f"it takes examples of up to {needs.completions} completions, these have {shape.completions or 'any number'}"
    return ""
