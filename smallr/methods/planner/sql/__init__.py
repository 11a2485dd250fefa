"""SQL as a task of the planner."""
