"""Measures host memory and time of loading a model: `python -m benchmarks.loading [--size=1.5] [--folder=DIR]`.

Writes synthetic sharded safetensors folders, loads each in a process of its own, and prints a table. "Over resident"
is the kernel's high-water mark of the process' memory (VmHWM, pages of mapped files included) without that of the
parameters themselves and of what was there before (Python, JAX), in units of the largest parameter. The target is 1.3.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

SHARD_BYTES = 300e6


def config_json(gigabytes: float) -> dict:
    """Returns a Llama of about so many gigabytes in float32, whose largest tensor is a stack of 16 layers."""
    d_model, layers = 1024, 16
    d_ff = int((gigabytes * 2.5e8 - 2 * 32000 * d_model - layers * 4 * d_model**2) / (3 * layers * d_model)) // 64 * 64
    return {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": d_model,
        "intermediate_size": d_ff,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }


def write(folder: Path, hf: dict, dtype: type) -> None:
    """Writes a sharded folder of noise, one shard in memory at a time."""
    from smallr.models.families import llama

    d_model, d_ff = hf["hidden_size"], hf["intermediate_size"]
    shapes = {"embed_tokens": (hf["vocab_size"], d_model), "lm_head": (hf["vocab_size"], d_model)}
    shapes |= {"gate_proj": (d_ff, d_model), "up_proj": (d_ff, d_model), "down_proj": (d_model, d_ff)}
    shapes |= dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (d_model, d_model))
    rng, shard, files, size = np.random.default_rng(0), {}, {}, 0
    names = []
    for tensor in llama.TENSORS:
        names += [tensor.name.format(layer=n) for n in range(hf["num_hidden_layers"] if tensor.stacked else 1)]
    names.sort()  # as transformers does: a layer's tensors lie together

    def flush() -> None:
        name = f"model-{len(set(files.values())) + 1:05d}.safetensors"
        files.update(dict.fromkeys(shard, name))
        save_file(shard, folder / name)
        shard.clear()

    for name in names:
        shape = shapes.get(name.split(".")[-2], (d_model,))
        shard[name] = (rng.standard_normal(shape, np.float32) * 0.02).astype(dtype)
        size += shard[name].nbytes
        if size > SHARD_BYTES:
            flush()
            size = 0
    flush()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    (folder / "config.json").write_text(json.dumps(hf))


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def measure(folder: str) -> dict[str, float]:
    """Loads in this process, and says what it cost."""
    import jax

    from smallr.core.sharding import make_mesh
    from smallr.models.loading import load_decoder, open_model

    mesh = make_mesh()
    jax.block_until_ready(jax.device_put(np.zeros(8, np.float32)))
    source = open_model(folder)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the mark starts here
    start = time.perf_counter()
    decoder = load_decoder(source, mesh)
    leaves = [leaf for leaf in jax.tree.leaves(decoder) if hasattr(leaf, "nbytes")]
    jax.block_until_ready(leaves)
    seconds = time.perf_counter() - start
    sizes = [leaf.nbytes for leaf in leaves]
    return {
        "seconds": seconds,
        "resident": sum(sizes),
        "largest": max(sizes),
        "over": _status("VmHWM") - before - sum(sizes),
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=float, default=1.5, help="gigabytes of the parameters in float32")
    parser.add_argument("--folder", help="where to write the models; default: a temporary folder")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return
    print("file      | parameters | largest tensor | peak over resident | of the largest tensor | time")
    for name, dtype in (("float32", np.float32), ("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            write(Path(folder), config_json(args.size), dtype)
            command = [sys.executable, "-m", "benchmarks.loading", f"--measure={folder}"]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ).stdout
        m = json.loads(output.splitlines()[-1])
        print(
            f"{name:9} | {m['resident'] / 1e6:7.0f} MB | {m['largest'] / 1e6:11.0f} MB | {m['over'] / 1e6:15.0f} MB | "
            f"{m['over'] / m['largest']:21.2f} | {m['seconds']:.1f} s"
        )


if __name__ == "__main__":
    main()
