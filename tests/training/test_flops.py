import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from absl import logging as absl_logging

from smallr.training.flops import mfu, peak_flops
from tests.runs import environment


def _device(kind: str) -> SimpleNamespace:
    return SimpleNamespace(platform="tpu" if "TPU" in kind else "gpu", device_kind=kind)


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("TPU v2", 22.5),
        ("TPU v3", 61.5),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("TPU v6e", 918),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10G", 70),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_data_sheet_figures_by_device_kind(kind, teraflops):
    assert peak_flops("bfloat16", _device(kind)) == pytest.approx(teraflops * 1e12)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("TPU v9", "bfloat16"),
        ("TPU7x", "bfloat16"),
        ("NVIDIA L40", "bfloat16"),
        ("NVIDIA H20", "bfloat16"),
        ("NVIDIA GeForce RTX 3090 Ti", "bfloat16"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bfloat16"),
        ("NVIDIA GeForce RTX 4090 D", "bfloat16"),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "bfloat16"),
        ("NVIDIA H100 80GB HBM3", "float32"),
        ("Tesla T4", "bfloat16"),
    ],
)
def test_what_is_not_known_is_none_with_a_note(kind, dtype, caplog):
    absl_logging.get_absl_logger().addHandler(caplog.handler)
    try:
        assert peak_flops(dtype, _device(kind)) is None
    finally:
        absl_logging.get_absl_logger().removeHandler(caplog.handler)
    assert f"no peak FLOP/s is known for {kind} in {dtype}" in caplog.text


def test_devices_with_float16_alone():
    assert peak_flops("float16", _device("Tesla T4")) == 65e12
    assert peak_flops("float16", _device("Tesla V100-SXM2-16GB")) == 125e12


def test_a_cpu_is_measured_quickly():
    start = time.perf_counter()
    peak = peak_flops("float32")
    assert time.perf_counter() - start < 5
    assert 1e9 < peak < 1e14
    assert peak_flops("float32") == peak  # once


_SHARE = """
from smallr.training.flops import _measured, peak_flops
assert peak_flops("float32") * 4 == _measured("float32")
"""


@pytest.mark.process
def test_simulated_devices_share_the_cpu():
    subprocess.run([sys.executable, "-c", _SHARE], env=environment(4), check=True, timeout=60)


def test_mfu():
    assert mfu(flops=4e12, seconds=2.0, devices=4, peak=1e12) == pytest.approx(0.5)
    assert mfu(flops=4e12, seconds=2.0, devices=4, peak=None) is None
