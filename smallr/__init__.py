"""smallr: train small reasoning language models from teacher rationales, in JAX."""

import os

# transformers is here for tokenizers and configs; it need not say that PyTorch is missing.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__version__ = "0.1.0"
