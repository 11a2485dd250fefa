"""Compares discriminators of the planner."""
