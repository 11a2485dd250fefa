"""Write a launcher: python -m experiments.launch --kind=slurm --set=partition=gpu --command='…' > job.sh

    python -m experiments.launch --kind=slurm --set=partition=gpu --set=project=$PWD \
        --command='python -m experiments.crv.ablation --out=/shared/cogpo --model=smollm2-135m-instruct' > job.sh
    sbatch job.sh
    python -m experiments.launch --kind=slurm --set=partition=gpu --set=project=$PWD --set=nodes=2 \
        --command='smallr train cogpo --workdir=/shared/runs/a' > job.sh
    python -m experiments.launch --kind=slurm --set=partition=gpu --set=project=$PWD --set=shares=8 \
        --command='smallr sweep cogpo --grid optimizer.learning_rate=1e-6,3e-6 --seeds=3 --out=/shared/lr' > job.sh
    python -m experiments.launch --kind=skypilot --set=bucket=s3://my-bucket --command='… --out=/results/cogpo' > job.yaml
    sky jobs launch job.yaml
    python -m experiments.launch --kind=xpk --set=cluster=C --set=project=P --set=zone=Z --set=image=I --set=storage=S \
        --command='… --out=/results/cogpo' > job.sh
    bash job.sh

Fields of each kind stand in experiments/launch/templates.py and in the templates beside it.
"""

from __future__ import annotations

import sys

from absl import app, flags

from experiments.launch.templates import KINDS, render
from smallr.core.errors import UserError

KIND = flags.DEFINE_enum("kind", None, list(KINDS), "Which launcher", required=True)
COMMAND = flags.DEFINE_string(
    "command", None, "Of a grid or smallr sweep, without --share; or smallr train … --workdir=FOLDER", required=True
)
SET = flags.DEFINE_multi_string("set", [], "FIELD=VALUE of the template")


def main(argv: list[str]) -> None:
    """Prints the launcher."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    values = dict(item.split("=", 1) if "=" in item else (item, "") for item in SET.value)
    try:
        print(render(KIND.value, COMMAND.value, values), end="")
    except UserError as error:
        sys.exit(f"smallr: {error}")


if __name__ == "__main__":
    app.run(main)
