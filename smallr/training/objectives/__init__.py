"""Holds the kinds of objective; `smallr.training.objective` finds them by name."""
