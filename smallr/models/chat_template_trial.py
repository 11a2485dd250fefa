"""Renders a chat template under limits, in a process of its own; says on stdout what is wrong, and dies where it does not end.

The environment of the template is that of transformers' `apply_chat_template`.
"""

import json
import resource
import sys
from datetime import datetime

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

USER, ANSWER = {"role": "user", "content": "3 + 4?"}, {"role": "assistant", "content": "7"}
CONVERSATIONS = (
    [USER],
    [USER, ANSWER],
    [{"role": "system", "content": "Be brief."}, USER, ANSWER, USER],
)
TOKENS = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|token|>")


class Generation(jinja2.ext.Extension):
    """Parses the block with which templates mark what the assistant says."""

    tags = frozenset({"generation"})

    def parse(self, parser):
        """Returns the statements of the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def refuse(message: str) -> None:
    """Raises an error; templates call it on conversations that they do not take."""
    raise jinja2.TemplateError(message)


def main() -> None:
    """Reads template and limits from stdin."""
    job = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CPU, (job["seconds"], job["seconds"]))
    resource.setrlimit(resource.RLIMIT_AS, (job["bytes"], job["bytes"]))
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False)
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    try:
        template = environment.from_string(job["template"])
    except (jinja2.TemplateSyntaxError, RecursionError) as error:
        print(f"is not valid ({error})", end="")
        return
    for messages in CONVERSATIONS:
        for opens in (False, True):
            size = 0
            try:
                for piece in template.generate(messages=messages, add_generation_prompt=opens, **TOKENS):
                    size += len(piece)
                    if size > job["characters"]:
                        break
            except MemoryError:
                print(f"needs over {job['bytes'] >> 20} MB", end="")
                return
            except Exception:  # a template refuses what it likes
                continue
            if size > job["characters"]:
                print(
                    f"writes over {job['characters']} characters for a conversation of {len(messages)} messages", end=""
                )
                return


main()
