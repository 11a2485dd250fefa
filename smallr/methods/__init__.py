"""Holds the published methods, one package each; none imports another."""
