"""Experiments on answer-first and adaptive thinking."""
