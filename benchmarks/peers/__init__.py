"""Holds workers that train on the same pairs: smallr and its peers, each a process in an environment of its own."""
