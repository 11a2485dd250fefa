"""Says what the machine is: devices, versions, memory."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from pathlib import Path

import jax

from smallr import __version__
from smallr.doctor.findings import Findings
from smallr.models.attention_support import DeviceFacts

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "transformers")
GIB = 2**30


def describe(findings: Findings) -> None:
    """Adds devices, versions and memory."""
    device = jax.local_devices()[0]
    facts = DeviceFacts.of(device)
    processes = f" on {jax.process_count()} processes" if jax.process_count() > 1 else ""
    capability = f", compute capability {'.'.join(map(str, facts.capability))}" if facts.capability else ""
    kind = _processor() if facts.platform == "cpu" else facts.kind
    findings.add(
        "machine",
        "devices",
        f"{jax.device_count()} x {kind} ({facts.platform}){processes}{capability}",
        count=jax.device_count(),
        kind=kind,
        platform=facts.platform,
        processes=jax.process_count(),
    )
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    busy = f"; BUSY, load {load:.1f}: times below are of a shared machine" if load > 0.5 * os.cpu_count() else ""
    host = f"{os.cpu_count()} cores, {_host_memory() / GIB:.1f} GiB, {platform.platform()}{busy}"
    findings.add("machine", "host", host, load=load)
    limit = _device_memory(device)
    if limit:
        findings.add("machine", "device memory", f"{limit / GIB:.1f} GiB for JAX on each device", bytes=limit)
    versions = {"python": platform.python_version(), "smallr": __version__}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    findings.add("machine", "versions", ", ".join(f"{name} {number}" for name, number in versions.items()), **versions)
    findings.add("machine", "runtime", " ".join(facts.runtime.split()))
    flags = {name: os.environ[name] for name in ("XLA_FLAGS", "JAX_PLATFORMS") if os.environ.get(name)}
    if flags:
        findings.add("machine", "environment", " ".join(f"{name}={value}" for name, value in flags.items()), **flags)
    findings.add("machine", "date", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))


def _device_memory(device: jax.Device) -> int:
    """Returns the bytes that JAX may take on a device; 0 where it does not say."""
    return int((device.memory_stats() or {}).get("bytes_limit", 0))


def _host_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _processor() -> str:
    """Returns the processor's name (Linux), else the architecture's."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
