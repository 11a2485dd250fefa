"""Kills training runs at random moments and checks that they end in the bits of uninterrupted ones.

    python -m benchmarks.kill_campaign --kills=100 --out=runs/kill_campaign

Runs of different seeds, configs and packings share one cold cache, two at a time. Each is killed with SIGKILL at a random
moment, started again, killed again …, and at last left to finish. The digest of its last checkpoint is compared with that of
a run that was never killed and that filled a cache of its own, so the check also finds a cache entry that depends on the
run that made it. Prints one line a run and exits with 1 where a digest differs or a run fails.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

CONFIGS = ("cogpo", "dpo", "sft", "kto")
LAYOUTS = ((), ("--config.batch.rows=4",), ("--config.batch.packing=False",), ("--config.batch.row_length=384",))


@dataclasses.dataclass(frozen=True)
class Case:
    """Describes one run: a config, a seed, and how its rows are laid out."""

    config: str
    seed: int
    layout: tuple[str, ...]

    @property
    def name(self) -> str:
        """Returns a folder's name."""
        return "-".join([self.config, str(self.seed), *(flag.rpartition(".")[2] for flag in self.layout)])

    def command(self, workdir: Path) -> list[str]:
        """Returns the command line of the run, which also resumes it."""
        return [
            *(sys.executable, "-m", "smallr.train", f"--config=configs/{self.config}.py:smoke", f"--workdir={workdir}"),
            *(f"--config.seed={self.seed}", "--config.checkpoint.every=1", *self.layout),
        ]


def start(case: Case, workdir: Path, cache: Path) -> subprocess.Popen:
    """Starts the run in a process group of its own; its output goes to a log beside the workdir."""
    environment = {**os.environ, "SMALLR_CACHE": str(cache), "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # compiled programs are part of the shared cache
    with workdir.with_suffix(".log").open("a") as log:
        return subprocess.Popen(
            case.command(workdir), env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def finish(case: Case, workdir: Path, cache: Path) -> float:
    """Runs to the end and returns the seconds that it took.

    Raises:
      RuntimeError: the run failed; the message holds the end of its log.
    """
    begun = time.monotonic()
    if start(case, workdir, cache).wait() != 0:
        raise RuntimeError(f"{case.name} failed: {workdir.with_suffix('.log').read_text()[-2000:]}")
    return time.monotonic() - begun


def digest(workdir: Path) -> str:
    """Returns the digest of the newest checkpoint's arrays."""
    newest = max(
        (workdir / "checkpoints").iterdir(), key=lambda folder: int(folder.name) if folder.name.isdigit() else -1
    )
    return json.loads((newest / "metadata" / "metadata").read_text())["digest"]


def killed(case: Case, kills: int, workdir: Path, cache: Path, seconds: float, rng: random.Random) -> int:
    """Starts the run and kills it `kills` times, then lets it finish; returns how many kills found it alive."""
    alive = 0
    for _ in range(kills):
        process = start(case, workdir, cache)
        try:
            process.wait(rng.uniform(0.0, seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            alive += 1
        process.wait()
    finish(case, workdir, cache)
    return alive


def main() -> None:
    """Runs the campaign and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs in all (100)")
    parser.add_argument("--runs", type=int, default=20, help="different runs that share them (20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and of the choice of runs (0)")
    parser.add_argument("--out", type=Path, default=Path("runs/kill_campaign"), help="folder, emptied first")
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)

    rng = random.Random(args.seed)
    cases = [Case(*parts) for parts in itertools.product(CONFIGS, range(5), LAYOUTS)]
    cases = rng.sample(cases, min(args.runs, len(cases)))
    shares = [args.kills // len(cases) + (i < args.kills % len(cases)) for i in range(len(cases))]
    seeds = [rng.random() for _ in cases]

    def campaign(case: Case, kills: int, seed: float) -> tuple[Case, int, str, str]:
        alone, shared = args.out / f"{case.name}-alone", args.out / case.name
        seconds = finish(case, alone, args.out / f"{case.name}-cache")
        alive = killed(case, kills, shared, args.out / "shared-cache", seconds, random.Random(seed))
        shutil.rmtree(args.out / f"{case.name}-cache")
        return case, alive, digest(alone), digest(shared)

    landed, different = 0, 0
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        for case, alive, expected, found in pool.map(campaign, cases, shares, seeds):
            landed, different = landed + alive, different + (expected != found)
            print(f"{case.name:44} {alive:3} kills  {'equal' if expected == found else 'DIFFERENT'}", flush=True)
    print(f"{len(cases)} runs, {landed} kills of running processes, {different} runs with other bits")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
