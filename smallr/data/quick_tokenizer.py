"""Stands for a tokenizer of transformers, which takes more than a second to import, where little is asked of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

# What a template may be made of to be rendered here: no call, no attribute of Python's, no filter but one of text.
_NODES = "Template Output TemplateData Const Name Getitem Getattr Slice Compare Operand And Or Not Add Concat CondExpr If For"
_TESTS, _FILTERS = {"defined", "undefined", "none", "string"}, {"trim"}
# Names that transformers gives templates beyond those of jinja2.
_GLOBALS = {"raise_exception", "strftime_now"}


class QuickTokenizer:
    """Encodes, decodes and renders simple chats by itself; what else is asked of it a tokenizer of transformers does.

    Where both can answer, they answer alike (`tests/models/test_quick_tokenizer.py`).

    Attributes:
      backend_tokenizer: the Rust tokenizer.
      chat_template: as it is in the file; it does not change.
      special_tokens_map: name of a special token, such as "eos_token" -> the token.
    """

    is_fast = True
    name_or_path = ""

    def __init__(
        self,
        backend: Tokenizer,
        special: Mapping[str, str],
        chat_template: str | None,
        make: Callable[[], PreTrainedTokenizerFast],
    ):
        """Takes what a tokenizer is made of, and what makes one of transformers of the same."""
        self.backend_tokenizer, self.chat_template = backend, chat_template
        self.special_tokens_map = dict(special)
        self._make = make

    @functools.cached_property
    def whole(self) -> PreTrainedTokenizerFast:
        """Returns the tokenizer of transformers that this one stands for."""
        return self._make()

    def __getattr__(self, name: str) -> Any:
        """Returns what this class does not have; of the four special tokens that a file names, those that it lacks are None."""
        if name.startswith("_") or name == "whole":
            raise AttributeError(name)
        if name in ("bos_token", "eos_token", "unk_token", "pad_token"):
            return self.special_tokens_map.get(name)
        if name in ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id"):
            token = self.special_tokens_map.get(name.removesuffix("_id"))
            return None if token is None else self.backend_tokenizer.token_to_id(token)
        return getattr(self.whole, name)

    def __reduce__(self) -> tuple[Any, ...]:
        """Goes to other processes as the tokenizer that it stands for."""
        return _same, (self.whole,)

    def __len__(self) -> int:
        """Returns the size of the vocabulary, added tokens included."""
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    def __bool__(self) -> bool:
        """Returns True, as that of transformers does."""
        return True

    def __call__(self, text: Any, add_special_tokens: bool = True, **options: Any) -> Mapping[str, Any]:
        """Returns the tokens of a text under "input_ids"."""
        if options or not isinstance(text, str):
            return self.whole(text, add_special_tokens=add_special_tokens, **options)
        return {"input_ids": self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    def decode(self, ids: Any, skip_special_tokens: bool = False, **options: Any) -> Any:
        """Returns the text of tokens."""
        if options or not (isinstance(ids, list) and all(type(each) is int for each in ids)):
            return self.whole.decode(ids, skip_special_tokens=skip_special_tokens, **options)
        return self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def get_vocab(self) -> dict[str, int]:
        """Returns the ids of all tokens, added ones included."""
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Returns the added tokens by their ids."""
        return self.backend_tokenizer.get_added_tokens_decoder()

    @property
    def all_special_tokens(self) -> list[str]:
        """Returns the special tokens, each once."""
        return list(dict.fromkeys(self.special_tokens_map.values()))

    @property
    def all_special_ids(self) -> list[int]:
        """Returns the ids of the special tokens, each once."""
        return [self.backend_tokenizer.token_to_id(token) for token in self.all_special_tokens]

    def get_chat_template(self, chat_template: str | None = None, tools: Any = None) -> str:
        """Returns the template that renders chats."""
        if isinstance(self.chat_template, str) and chat_template is None:
            return self.chat_template
        return self.whole.get_chat_template(chat_template, tools)

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Renders a chat, by itself where messages are roles and texts and the template is simple (`simple_template`)."""
        given = dict(options)
        template = given.pop("chat_template", None) or self.chat_template
        opens = bool(given.pop("add_generation_prompt", False))
        is_text = given.pop("tokenize", True) is False
        is_plain = (
            is_text and not any(given.pop(name, None) for name in ("tools", "continue_final_message")) and not given
        )
        if (
            is_plain
            and isinstance(template, str)
            and _is_plain(conversation)
            and (program := simple_template(template))
        ):
            messages = [dict(message) for message in conversation]
            return program.render(
                messages=messages, tools=None, documents=None, add_generation_prompt=opens, **self.special_tokens_map
            )
        return self.whole.apply_chat_template(conversation, **options)


@functools.lru_cache(maxsize=32)
def simple_template(text: str) -> jinja2.Template | None:
    """Compiles a template that loops, compares and joins texts, and calls nothing; None for any other.

    Such a template sees nothing of transformers' environment, whose own functions and guards all stand behind calls.
    """
    import jinja2
    from jinja2 import nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    allowed = tuple(getattr(nodes, name) for name in _NODES.split())
    hidden = {*environment.globals, *_GLOBALS}

    def is_simple(node: nodes.Node) -> bool:
        if isinstance(node, nodes.Name) and node.name in hidden:
            return False
        if isinstance(node, nodes.Getattr) and node.attr.startswith("_"):
            return False
        if isinstance(node, nodes.Test | nodes.Filter):
            names = _TESTS if isinstance(node, nodes.Test) else _FILTERS
            return node.name in names and not (node.args or node.kwargs or node.dyn_args or node.dyn_kwargs)
        return isinstance(node, allowed)

    try:
        tree = environment.parse(text)
        return (
            environment.from_string(text)
            if is_simple(tree) and all(map(is_simple, tree.find_all(nodes.Node)))
            else None
        )
    except jinja2.TemplateError:
        return None


def _is_plain(conversation: Any) -> bool:
    """Returns whether a chat is of messages with a role and a text, and nothing else."""
    return (
        isinstance(conversation, Sequence)
        and len(conversation) > 0
        and all(
            type(message) is dict
            and message.keys() == {"role", "content"}
            and all(type(x) is str for x in message.values())
            for message in conversation
        )
    )


def _same(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    return tokenizer


def whole(tokenizer: Any) -> PreTrainedTokenizerFast:
    """Returns the tokenizer of transformers: the one that is given, or the one that it stands for."""
    return tokenizer.whole if isinstance(tokenizer, QuickTokenizer) else tokenizer
