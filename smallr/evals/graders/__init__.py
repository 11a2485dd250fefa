"""Graders: whether an output is right. They never raise for an output, however strange; a verdict says why."""
