"""Evaluation: benchmarks, graders, statistics. They know language models by their interface alone."""
