"""Evaluates models: benchmarks, graders, statistics. They know language models by their interface alone."""
