"""Launchers are filled, and are what bash and a YAML reader take."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from experiments.launch.templates import DEFAULTS, KINDS, render
from smallr.cli.main import COMMANDS
from smallr.cli.parsing import Parser
from smallr.core.errors import UserError

COMMAND = "python -m experiments.crv.ablation --out=/results/cogpo --sweeps=beta,mix"
SWEEP = "smallr sweep cogpo --grid optimizer.learning_rate=1e-6,3e-6 --seeds=3 --out=/results/lr"
TRAIN = "smallr train cogpo --workdir=/results/a --config.steps=10"
VALUES = {
    "slurm": {"partition": "gpu", "project": "/home/me/smallr", "shares": "3"},
    "skypilot": {"bucket": "s3://my-bucket", "shares": "3"},
    "xpk": {"cluster": "c", "project": "p", "zone": "us-central1-a", "image": "gcr.io/p/smallr:1", "storage": "s"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_field_is_left_open(kind):
    text = render(kind, COMMAND, VALUES[kind])
    assert not re.search(r"\{\{|\}\}", text)
    assert COMMAND in text
    with pytest.raises(UserError, match="set "):
        render(kind, COMMAND, {})
    assert set(DEFAULTS) == set(KINDS)


@pytest.mark.process
@pytest.mark.parametrize("kind", ["slurm", "xpk"])
@pytest.mark.parametrize("command", [COMMAND, SWEEP, TRAIN])
def test_bash_accepts_the_scripts(kind, command):
    values = {name: value for name, value in VALUES[kind].items() if name != "shares"}
    done = subprocess.run(
        ["bash", "-n"], input=render(kind, command, values), text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.process
def test_a_slurm_task_runs_its_part(tmp_path):
    project = tmp_path / "project"
    (project / ".venv/bin").mkdir(parents=True)
    (project / ".venv/bin/activate").touch()
    stand_in(tmp_path / "bin/srun", f'printf "%s\\n" "$PWD" "$@" > {tmp_path}/asked')
    script = render("slurm", COMMAND, VALUES["slurm"] | {"project": str(project)})
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "2", "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", script], env=environment, check=True)
    where, *asked = (tmp_path / "asked").read_text().splitlines()
    assert where == str(project)
    assert asked == ["--kill-on-bad-exit=1", *shlex.split(COMMAND), "--share=2/3"]
    assert "#SBATCH --array=0-2\n" in script


@pytest.mark.parametrize("kind", KINDS)
def test_a_sweep_is_shared_out_and_a_training_run_is_not(kind):
    """The flags that a launcher adds are flags of the command."""
    swept = render(kind, SWEEP, VALUES[kind])
    trained = render(kind, TRAIN, {name: value for name, value in VALUES[kind].items() if name != "shares"})
    assert f"{SWEEP} --share=" in swept
    assert "--share" not in trained
    added = re.findall(r"(?<!-)--(\w+)", swept.split(SWEEP)[1].splitlines()[0])
    added += re.findall(r"--(\w+)", trained.split(TRAIN)[1].splitlines()[0])
    known = [parser_of("sweep"), parser_of("train")]
    assert added
    assert all(any(f"--{name}" in each for each in known) for name in added)


@pytest.mark.process
def test_skypilot_yaml_says_what_the_task_needs():
    task = yaml.safe_load(render("skypilot", COMMAND, VALUES["skypilot"]))
    assert (task["name"], task["num_nodes"]) == ("cogpo", 3)
    assert task["resources"] == {"accelerators": "H100:1", "use_spot": True}
    assert task["file_mounts"] == {"/results": {"source": "s3://my-bucket", "mode": "MOUNT"}}
    assert f'{COMMAND} --share="$SKYPILOT_NODE_RANK/3"' in task["run"]
    for part in ("setup", "run"):
        assert subprocess.run(["bash", "-n"], input=task[part], text=True, check=False).returncode == 0


@pytest.mark.process
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_training_run_over_nodes_of_slurm(tmp_path, nodes):
    project = tmp_path / "project"
    (project / ".venv/bin").mkdir(parents=True)
    (project / ".venv/bin/activate").touch()
    stand_in(tmp_path / "bin/srun", f'printf "%s\\n" "$@" > {tmp_path}/asked')
    script = render("slurm", TRAIN, {"partition": "gpu", "project": str(project), "nodes": str(nodes)})
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", script], env=environment, check=True)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["--kill-on-bad-exit=1", *shlex.split(TRAIN), *(["--distributed"] if nodes > 1 else [])]
    assert f"#SBATCH --nodes={nodes}\n" in script
    assert "#SBATCH --array=0-0\n" in script


@pytest.mark.process
def test_a_training_run_over_nodes_of_skypilot(tmp_path):
    task = yaml.safe_load(render("skypilot", TRAIN, {"bucket": "s3://b", "nodes": "2"}))
    assert task["num_nodes"] == 2
    stand_in(tmp_path / "smallr", f'printf "%s\\n" "$@" > {tmp_path}/asked')
    script = task["run"].replace("source .venv/bin/activate\n", "")
    nodes = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    subprocess.run(
        ["bash", "-c", script], env={**os.environ, **nodes, "PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=True
    )
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[-4:] == ["--distributed", "--coordinator=10.0.0.1:8476", "--num_processes=2", "--process_id=1"]


@pytest.mark.process
def test_xpk_creates_a_workload_a_share(tmp_path):
    stand_in(tmp_path / "xpk", f'printf "%s\\n" "$@" >> {tmp_path}/asked')
    script = render("xpk", COMMAND, VALUES["xpk"] | {"shares": "2"})
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", script], env=environment, check=True)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [line for line in asked if line.startswith("--workload")] == ["--workload=cogpo-0", "--workload=cogpo-1"]
    assert [line for line in asked if line.startswith("--command")] == [
        f"--command={COMMAND} --share={share}/2" for share in range(2)
    ]


@pytest.mark.parametrize(
    ("kind", "command", "values", "message"),
    [
        ("sge", COMMAND, {}, "must be one of: slurm"),
        ("slurm", COMMAND, {"partitoin": "gpu"}, "partition"),
        ("slurm", COMMAND, VALUES["slurm"] | {"shares": "0"}, "at least 1"),
        ("slurm", COMMAND, VALUES["slurm"] | {"project": "a; rm b"}, "may hold"),
        ("xpk", COMMAND, VALUES["xpk"] | {"name": "Not_Allowed"}, "small letters"),
        ("slurm", COMMAND + " --share=0/2", VALUES["slurm"], "without --share"),
        ("slurm", "", VALUES["slurm"], "without --share"),
        ("xpk", "python -m a --out=$HOME", VALUES["xpk"], "may not hold"),
        ("slurm", "smallr train cogpo", VALUES["slurm"], "add --workdir=FOLDER"),
        ("slurm", TRAIN, VALUES["slurm"], "no field 'shares'"),
    ],
)
def test_what_would_not_run_is_refused(kind, command, values, message):
    with pytest.raises(UserError, match=message):
        render(kind, command, values)


@pytest.mark.process
def test_the_command_prints_the_launcher():
    arguments = [f"--set={name}={value}" for name, value in VALUES["slurm"].items()]
    command = [sys.executable, "-m", "experiments.launch", "--kind=slurm", f"--command={COMMAND}", *arguments]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True)
    assert done.stdout == render("slurm", COMMAND, VALUES["slurm"])


def parser_of(command: str) -> str:
    """The help of a command."""
    module = importlib.import_module(COMMANDS[command][0])
    parser = Parser(command, module.__doc__)
    module.flags(parser)
    return parser._parser.format_help()


def stand_in(path: Path, body: str) -> None:
    """A program that does nothing but write down what it was asked."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
