"""smallr: train small reasoning language models from teacher rationales, in JAX."""

__version__ = "0.1.0"
