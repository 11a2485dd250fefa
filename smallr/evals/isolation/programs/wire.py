"""Carries values between two processes that do not trust each other: lines of JSON, builtin types only.

What arrives is made of exact builtin types, so that a value's own `__eq__`, `__hash__` or `__reduce__` never runs at the
receiver. Anything else stays where it is, and a handle to it is sent.
"""

import builtins
import json
import os
import types

PLAIN = (str, bool, type(None))
MAX_LINE = 64 << 20  # bytes of a message
KINDS = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


class ProtocolError(Exception):
    """Reports that what arrived is no message."""


class Wire:
    """Sends and receives at one end of a connection.

    `export` turns a value that is no builtin into a number, `resolve` turns such a number of the other end, or of this
    one, into a value.
    """

    def __init__(self, descriptor, export, resolve):
        """Takes over an open socket's descriptor."""
        self.reader, self.writer = os.fdopen(descriptor, "rb"), os.fdopen(os.dup(descriptor), "wb")
        self.export, self.resolve = export, resolve

    def send(self, message):
        """Writes one message: a dict of names to values."""
        line = json.dumps({name: self.encode(value) for name, value in message.items()})
        self.writer.write(line.encode() + b"\n")
        self.writer.flush()

    def receive(self):
        """Reads one message.

        Raises:
          EOFError: the other end is gone.
          ProtocolError: what it sent is no message.
        """
        line = self.reader.readline(MAX_LINE)
        if len(line) == MAX_LINE:
            raise ProtocolError("a message is too long")
        if not line.endswith(b"\n"):
            raise EOFError("the other process is gone")
        try:
            return {name: self.decode(value) for name, value in json.loads(line).items()}
        except Exception as error:  # whatever is wrong with it; RecursionError and MemoryError as well
            raise ProtocolError(f"{type(error).__name__}: {error}"[:200]) from None

    def encode(self, value):
        """Returns a value as JSON has it."""
        if isinstance(value, PLAIN):
            return value if value is None or isinstance(value, bool) else str(value)
        if isinstance(value, int):
            return {"int": hex(int(value))}  # hexadecimal: quick for huge ones, and without a limit on digits
        if isinstance(value, float):
            return {"float": float(value).hex()}
        if isinstance(value, complex):
            return {"complex": [value.real.hex(), value.imag.hex()]}
        if isinstance(value, bytes | bytearray):
            return {"bytes": bytes(value).hex()}
        if isinstance(value, range):
            return {"range": [hex(value.start), hex(value.stop), hex(value.step)]}
        if isinstance(value, dict):
            return {"dict": [[self.encode(key), self.encode(item)] for key, item in dict.items(value)]}
        if isinstance(value, type) and vars(builtins).get(value.__name__) is value:
            return {"type": value.__name__}
        for kind in (list, tuple, set, frozenset):
            if isinstance(value, kind):
                return {kind.__name__: [self.encode(item) for item in kind.__iter__(value)]}
        if isinstance(value, types.GeneratorType | map | filter | zip | reversed | enumerate):
            return {"iterator": self.export(value)}
        return {"handle": self.export(value)}

    def decode(self, data):
        """Returns the value that was encoded; any exception means that none was."""
        if not isinstance(data, dict):
            if not isinstance(data, PLAIN):  # a bare number or list is never sent
                raise ValueError(f"a bare {type(data).__name__}")
            return data
        ((kind, content),) = data.items()
        if kind == "int":
            return int(content, 16)
        if kind == "float":
            return float.fromhex(content)
        if kind == "complex":
            real, imaginary = map(float.fromhex, content)
            return complex(real, imaginary)
        if kind == "bytes":
            return bytes.fromhex(content)
        if kind == "range":
            start, stop, step = (int(number, 16) for number in content)
            return range(start, stop, step)
        if kind == "dict":
            return {self.decode(key): self.decode(item) for key, item in content}
        if kind == "type":
            found = vars(builtins)[content]
            if not isinstance(found, type):
                raise ValueError(f"{content} is no type")
            return found
        if kind in KINDS:
            if not isinstance(content, list):
                raise ValueError(f"items of a {kind} are no list")
            return KINDS[kind]([self.decode(item) for item in content])
        if kind not in ("handle", "iterator") or type(content) is not int:
            raise ValueError(f"kind {kind!r} is not known")
        return self.resolve(content, kind)
