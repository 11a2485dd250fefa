"""Holds the programs that run inside the sandbox, and their protocol. They import the standard library alone."""
