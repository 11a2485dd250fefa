"""Launchers of runs and of grids on many machines: templates for SLURM, SkyPilot and xpk, and `python -m experiments.launch`."""
