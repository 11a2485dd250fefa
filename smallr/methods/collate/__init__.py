"""COLLATE: small models that teach each other by the likelihood of the gold answer (arXiv 2506.02519)."""
