"""Configs of the planner."""
