#!/bin/bash
# {{about}} What is stopped for time or requeued goes on where it was.
#SBATCH --job-name={{name}}
#SBATCH --array=0-{{last}}
#SBATCH --partition={{partition}}
#SBATCH --nodes={{nodes}}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-task={{gpus}}
#SBATCH --cpus-per-task={{cpus}}
#SBATCH --mem={{memory}}
#SBATCH --time={{hours}}:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output=%x-%A-%a.log
set -euo pipefail
cd {{project}}
source .venv/bin/activate
srun --kill-on-bad-exit=1 {{command}}{{part}}
