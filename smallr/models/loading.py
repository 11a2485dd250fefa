"""Opens a model by its name, and loads its weights straight from the file to their shards."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from smallr.core.errors import UserError
from smallr.core.sharding import named_sharding
from smallr.data.quick_tokenizer import QuickTokenizer, whole
from smallr.models.chat_template import check_template
from smallr.models.config import DecoderConfig
from smallr.models.decoder import Decoder
from smallr.models.hf import TOKENIZER_FILES, download, folder_tokenizer, read_config
from smallr.models.names import BUILT_IN, SMOLLM2, TINY, check_model, check_tokenizer, smollm2_file
from smallr.models.safetensors import SafetensorsFolder
from smallr.models.weights import Convert, StoredParameters, TensorReader, is_variable, read_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

OFFLINE_CHOICES = (
    f"Without the hub: a local Hugging Face folder, a .gguf file, or a built-in model ({', '.join(BUILT_IN)})."
)
RANDOM_SEED = 0  # of the weights that no file gives
ReadParameter = Callable[[str], np.ndarray]  # a parameter by its dotted path in the decoder, each once


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Represents a model that can be loaded.

    Attributes:
      name: as given to `open_model`.
      config: what the file says, to be computed in the default way.
      make_tokenizer: builds the tokenizer.
      make_reader: opens the weights; None for seeded random ones.
      hf: the `config.json` that `config` was read from, or one that says the same.
      folder: of a model in Hugging Face layout, whose other files an export takes over as they are.
      tokenizer_folder: the folder that the tokenizer is read from; None if it is rebuilt from a GGUF file.
      allow_nonfinite: take NaN and infinite weights as they are.
      open_parameters: opens weights that are no longer those of the file; in place of `make_reader`.
      license: that the file names, in the hub's form; empty if it names none.
    """

    name: str
    config: DecoderConfig
    make_tokenizer: Callable[[], PreTrainedTokenizerFast | QuickTokenizer]
    make_reader: Callable[[], TensorReader] | None
    hf: Mapping[str, Any]
    folder: Path | None = None
    tokenizer_folder: Path | None = None
    allow_nonfinite: bool = False
    open_parameters: Callable[[], ReadParameter] | None = None
    license: str = ""

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Returns the model's tokenizer.

        Raises:
          UserError: it has ids beyond the embedding.
        """
        return whole(self.quick_tokenizer())

    def quick_tokenizer(self) -> PreTrainedTokenizerFast | QuickTokenizer:
        """Returns a tokenizer that does the same, and does not import transformers before more than a little is asked of it.

        Raises:
          UserError: see `tokenizer`.
        """
        tokenizer = self.make_tokenizer()
        check_template(tokenizer.chat_template, self.name)
        largest = max(tokenizer.get_vocab().values(), default=0)
        if largest >= self.config.vocab_size:
            raise UserError(
                f"model {self.name!r}: its tokenizer has id {largest}, its embedding only {self.config.vocab_size} rows; "
                "is it the tokenizer of another model?"
            )
        return tokenizer


def open_model(name: str, tokenizer: str = "", *, allow_nonfinite: bool = False) -> ModelSource:
    """Returns the source of a model.

    Args:
      name: built-in name, `.gguf` file, local Hugging Face folder, or hub id `owner/name`; tried in this order.
      tokenizer: a folder or hub id whose tokenizer comes in place of the model's own; empty: none.
      allow_nonfinite: take NaN and infinite weights as they are.

    Raises:
      UserError: nothing by that name; the message lists the built-in names and the nearest; a hub id that is not
        cached while the hub can not be reached; the package of a built-in model is not installed; the model's
        family or a key of its config is not supported.
    """
    source = dataclasses.replace(_open(name), allow_nonfinite=allow_nonfinite)
    if not tokenizer:
        return source
    folder = _tokenizer_folder(tokenizer)
    return dataclasses.replace(source, make_tokenizer=lambda: folder_tokenizer(folder), tokenizer_folder=folder)


def _open(name: str) -> ModelSource:
    check_model(name)
    if name == SMOLLM2:
        return _gguf_source(name, smollm2_file())
    if name == TINY:
        return _tiny_source()
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        return _gguf_source(name, path)
    if path.is_dir():
        return _folder_source(name, path)
    return _folder_source(name, download(name, OFFLINE_CHOICES))


def _tokenizer_folder(name: str) -> Path:
    check_tokenizer(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    return download(name, "Without the hub: a local folder with tokenizer.json.", TOKENIZER_FILES)


def load_decoder(source: ModelSource, mesh: Mesh, convert: Convert | None = None, **overrides: Any) -> Decoder:
    """Returns the model with every parameter on its shards.

    Each shard's block is read from the file on its own; host memory holds one parameter at a time.

    Args:
      source: from `open_model`.
      mesh: from `smallr.core.sharding.make_mesh`; the parameters' `axes` say how they are split over it.
      convert: gets each parameter as soon as it is read, and returns what is held in its place.
      **overrides: fields of DecoderConfig, e.g. `dtype="bfloat16"`, `remat="dots"`.

    Raises:
      UserError: tensors are missing, left over, of another shape, or not finite; they are named.
    """
    config = dataclasses.replace(source.config, **overrides)

    graphdef, abstract = _structure(config)
    if source.open_parameters is not None:
        return nnx.merge(graphdef, _filled(abstract, source.open_parameters(), mesh, convert))
    if source.make_reader is None:
        made = _random(config, mesh, RANDOM_SEED)()
        if convert:
            made = nnx.from_flat_state([(path, convert(path, leaf)) for path, leaf in nnx.to_flat_state(made)])
        return nnx.merge(graphdef, made)
    options = {"allow_nonfinite": source.allow_nonfinite, "convert": convert}
    return nnx.merge(graphdef, read_parameters(abstract, config, source.make_reader(), mesh, source.name, **options))


def abstract_decoder(source: ModelSource, **overrides: Any) -> Decoder:
    """Returns what `load_decoder` does with shapes in the place of arrays."""
    return nnx.merge(*_structure(dataclasses.replace(source.config, **overrides)))


def stored_parameters(source: ModelSource, **overrides: Any) -> StoredParameters | None:
    """Returns the parameters in a model's file, to be read layer by layer; None where `load_decoder` reads no file alone.

    Raises:
      UserError: see `load_decoder`.
    """
    if source.make_reader is None or source.open_parameters is not None:
        return None
    config = dataclasses.replace(source.config, **overrides)
    leaves = dict(nnx.to_flat_state(_structure(config)[1]))
    return StoredParameters(leaves, config, source.make_reader(), source.name, source.allow_nonfinite)


@functools.lru_cache(maxsize=8)
def _structure(config: DecoderConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """Returns what a decoder is made of, without arrays."""
    return nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(RANDOM_SEED))))


@functools.lru_cache(maxsize=8)
def _random(config: DecoderConfig, mesh: Mesh, seed: int) -> Callable[[], nnx.State]:
    """Returns the program that makes random parameters on their shards."""
    shardings = jax.tree.map(
        lambda leaf: named_sharding(mesh, leaf.get_metadata("axes"), leaf.shape),
        _structure(config)[1],
        is_leaf=is_variable,
    )
    return jax.jit(lambda: nnx.state(Decoder(config, rngs=nnx.Rngs(seed))), out_shardings=shardings)


def _filled(abstract: nnx.State, read: ReadParameter, mesh: Mesh, convert: Convert | None) -> nnx.State:
    leaves = []
    for path, leaf in nnx.to_flat_state(abstract):
        array, sharding = read(".".join(path)), named_sharding(mesh, leaf.get_metadata("axes"), leaf.shape)
        leaf = leaf.replace(jax.make_array_from_callback(leaf.shape, sharding, array.__getitem__))
        leaves.append((path, convert(path, leaf) if convert else leaf))
    return nnx.from_flat_state(leaves)


def _gguf_source(name: str, path: Path) -> ModelSource:
    from smallr.models.gguf import GGUFFile
    from smallr.models.gguf_tokenizer import gguf_tokenizer

    file = GGUFFile(path)
    licence = str(file.metadata("general.license", ""))
    return ModelSource(name, file.config, lambda: gguf_tokenizer(file), lambda: file, file.hf_config(), license=licence)


def _folder_source(name: str, folder: Path) -> ModelSource:
    hf = read_config(folder)
    return ModelSource(
        name,
        DecoderConfig.from_hf(hf),
        lambda: folder_tokenizer(folder),
        lambda: SafetensorsFolder(folder),
        hf,
        folder,
        tokenizer_folder=folder,
    )


def _tiny_source() -> ModelSource:
    """Makes two layers of random weights with SmolLM2's tokenizer, reduced to 1,280 tokens: for smoke runs and tests."""
    hf = {
        "model_type": "llama",
        "vocab_size": 1280,
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "max_position_embeddings": 8192,
    }
    folder = Path(__file__).parent / "tiny_random"
    return ModelSource(
        TINY,
        DecoderConfig.from_hf(hf),
        lambda: folder_tokenizer(folder),
        None,
        hf,
        tokenizer_folder=folder,
        license="apache-2.0",
    )
