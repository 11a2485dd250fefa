"""Implements CRV (critique, rethink, verify): rationales of a teacher, fitted to a small student (arXiv 2504.09802)."""
