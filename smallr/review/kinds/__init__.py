"""Reads rows of each kind that smallr writes by machine."""
