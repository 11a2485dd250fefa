"""Distils decomposition: sub-questions of problems, their feedback, and students that write them (arXiv 2402.01812)."""
