"""Holds the parts of `experiments.crv.ablation`: rows, runs, judgement, report."""
