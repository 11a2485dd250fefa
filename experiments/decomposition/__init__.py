"""Measures and recomputes what was published on distilling decompositions."""
