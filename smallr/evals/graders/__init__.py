"""Decides whether an output is right. Graders never raise for an output, however strange; a verdict says why."""
