"""The parts of `experiments.cogpo_ablation`: rows, runs, judgement, report."""
