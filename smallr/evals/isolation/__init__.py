"""Runs what is not trusted: a sandbox for code, and a pool of processes that may hang."""
