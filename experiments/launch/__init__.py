"""Writes launchers of runs and of grids on many machines, from templates for SLURM, SkyPilot and xpk."""
