"""Speed, memory and parity with peers; each module is a command line."""

import os

# Before transformers is imported, with or without smallr: where PyTorch is missing, that need not be said.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
