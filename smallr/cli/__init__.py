"""Holds the command line: `smallr COMMAND …`. A command is a module with `flags`, which names its flags, and `run`."""
