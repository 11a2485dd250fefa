"""The published methods, one package each; none imports another."""
