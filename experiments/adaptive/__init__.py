"""Runs experiments on answer-first and adaptive thinking."""
