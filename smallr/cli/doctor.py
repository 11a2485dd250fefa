"""Check a machine: devices, versions, speed, whether kernels agree with the dense rule, a training step.

  smallr doctor --quick                      about two minutes on two cores
  smallr doctor --out=doctor.json            up to eight minutes; the file is for a bug report
  smallr doctor --peer=torch                 a PyTorch step on the same pairs beside ours

Prints a table. The exit code is 1 where something disagrees that must agree, or fails. With several processes
(--distributed) all take part, and process 0 prints. docs/doctor.md says what each line means.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from pathlib import Path

from smallr.cli.parsing import Parser


def flags(parser: Parser) -> None:
    """Names the flags."""
    parser.flag("quick", False, "few and small measurements")
    parser.flag("dtype", "bfloat16", "of attention, head, step and sampling", choices=("float32", "bfloat16"))
    parser.flag("peer", None, "a trainer to time on the same pairs", choices=("torch",))
    parser.flag("minutes", None, "after which nothing more is begun (default: 8; 3 with --quick)", type=float, low=0.1)
    parser.flag("out", None, "a file for all numbers, JSON")
    parser.flag("distributed", False, "join the other processes (jax.distributed) first")
    parser.flag("coordinator", None, "host:port of process 0; found by itself on TPU pods and SLURM")
    parser.flag("num_processes", None, "processes; found likewise", type=int)
    parser.flag("process_id", None, "number of this process, from 0; found likewise", type=int)


def run(options: Namespace) -> int:
    """Measures and prints; 1 if something disagrees."""
    if options.peer:  # or JAX would take the peer's memory
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    if options.distributed:
        jax.distributed.initialize(options.coordinator, options.num_processes, options.process_id)
    from rich.console import Console

    from smallr.core.files import check_new_file, write_text
    from smallr.core.programs import keep_programs
    from smallr.doctor.checkup import Options, check_up
    from smallr.training.progress import announce, table

    if options.out and jax.process_index() == 0:
        check_new_file(Path(options.out))
    keep_programs()
    how = Options(options.quick, options.dtype, options.peer or "", minutes=options.minutes or 0.0)
    findings = check_up(how, lambda part: announce(f"doctor: {part} …"))
    if jax.process_index() == 0:
        # A pipe has no width: lines are as long as they are there.
        findings.show(Console(width=None if sys.stdout.isatty() else 1000))
        if findings.wrong:
            names = [(each.section, each.name) for each in findings.wrong]
            print(f"\nDISAGREES or fails:\n{table(('', ''), names)}\nPlease report it with the file of --out.")
        if options.out:
            write_text(Path(options.out), findings.to_json())
    return 1 if findings.wrong else 0
