"""A small tokenizer with a chat template, trained on the spot: no file, no package, no network."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are kind<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CORPUS = [
    "Tom has 12 apples and buys 7 more. How many apples does he have? The answer is 19.",
    "user assistant system You are kind",
    "What is this an example of? Of the above choices, only math problem has to do with it.\n\n",
    "question ### answer --> rationale\n\nA: yes. no. Anna and another answer answered",
] * 4


def build(*, bos: bool = False, eos: bool = False, template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Byte-level BPE in the manner of SmolLM2: digits one by one, `<|im_end|>` is EOS and padding.

    Args:
      bos: the tokenizer puts `<|startoftext|>` before plain text by itself.
      eos: it puts EOS behind plain text by itself.
      template: chat template; None for a tokenizer without.
    """
    specials = ["<|startoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    byte_level = processors.ByteLevel(trim_offsets=True)
    if bos or eos:
        single = ("<|startoftext|> " if bos else "") + "$A" + (" <|im_end|>" if eos else "")
        ids = [(name, tokenizer.token_to_id(name)) for name in specials]
        template_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
        tokenizer.post_processor = processors.Sequence([byte_level, template_processor])
    else:
        tokenizer.post_processor = byte_level
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=specials[0], eos_token=specials[2], pad_token=specials[2]
    )
    fast.add_special_tokens({"additional_special_tokens": [specials[1]]})
    fast.chat_template = template
    return fast
