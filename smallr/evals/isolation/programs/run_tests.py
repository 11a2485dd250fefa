"""Runs a benchmark's tests against a solution in another process. Argument: a socket's descriptor.

Standard input holds `setup` (code), `remote` (names of the tests -> names of the solution) and `tests` (pieces of code) as
JSON. Only this process decides; the solution's process never sees the tests, and gives values alone.
"""

import builtins
import ctypes
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from wire import ProtocolError, Wire

PR_SET_DUMPABLE = 4


class SolutionError(Exception):
    """Says that the solution raised something that is no builtin exception."""


class Gone(BaseException):
    """Says that the solution's process has ended, or says what makes no sense; no test can catch it."""


class Remote:
    """Stands for an object that lives in the solution's process. It equals nothing but itself."""

    def __init__(self, ask, number):
        """`ask` sends an operation and gives the value."""
        self._ask, self._number = ask, number

    def __call__(self, *args, **kwargs):
        """Returns the value that the solution gives."""
        return self._ask(operation="call", of=self, args=list(args), kwargs=kwargs)

    def __getattr__(self, name):
        """Its attribute."""
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask(operation="attribute", of=self, name=name)

    def __getitem__(self, key):
        """Its item."""
        return self._ask(operation="item", of=self, key=key)

    def __iter__(self):
        """Its items; those of an iterator are taken in portions."""
        iterator = self._ask(operation="iterate", of=self)
        while portion := self._ask(operation="take", of=iterator):
            if not isinstance(portion, list):
                raise Gone("the solution's process breaks the protocol: a portion of items is no list")
            yield from portion


# Errors that need other arguments, or that end an iteration of the tests without a word.
UNUSUAL = (UnicodeError, StopIteration, StopAsyncIteration, ExceptionGroup)


def error_of(name, message):
    """Returns the builtin exception of that name, else a SolutionError."""
    known = vars(builtins).get(name)
    usual = isinstance(known, type) and issubclass(known, Exception) and not issubclass(known, UNUSUAL)
    return (known if usual else SolutionError)(f"{name}: {message}")


def connect(descriptor):
    """Connects to the solution; gives the function that asks it."""

    def resolve(number, kind):
        return Remote(ask, number)

    def export(value):
        raise TypeError(f"a {type(value).__name__} cannot be given to a solution in another process")

    class Client(Wire):
        def encode(self, value):
            return {"handle": value._number} if isinstance(value, Remote) else super().encode(value)

    wire = Client(descriptor, export, resolve)

    def reply():
        try:
            message = wire.receive()
        except (EOFError, OSError) as error:
            raise Gone("the solution's process ended") from error
        except ProtocolError as error:
            raise Gone(f"the solution's process breaks the protocol: {error}") from error
        if message.keys() == {"value"}:
            return message["value"]
        if message.keys() != {"error", "message"}:
            raise Gone("the solution's process breaks the protocol: neither a value nor an error")
        raise error_of(str(message["error"]), str(message["message"]))

    def ask(**request):
        wire.send(request)
        return reply()

    return ask, reply


def main():
    """Runs the tests; writes the verdict as JSON to standard output."""
    descriptor = int(sys.argv[1])
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # another program of this user must not look in here
    sys.path.pop(0)
    sys.set_int_max_str_digits(0)
    verdict = os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 1)
    spec = json.load(sys.stdin.buffer)
    os.dup2(null, 0)
    os.write(descriptor, b"\n")  # the tests are read: the solution may start
    passed, failure = 0, None
    ask, reply = connect(descriptor)
    namespace = {"__name__": "tests"}
    try:
        reply()  # the solution is loaded
        exec(spec["setup"], namespace)
        for name, theirs in spec["remote"].items():
            namespace[name] = ask(operation="global", name=theirs)
        for test in spec["tests"]:
            exec(test, namespace)
            passed += 1
    except AssertionError as error:
        failure = f"assertion failed: {error}"[:200]
    except BaseException as error:
        failure = f"{type(error).__name__}: {error}"[:300]
    total = len(spec["tests"])
    ok = failure is None and passed == total and total > 0
    os.write(verdict, json.dumps({"ok": ok, "passed": passed, "total": total, "failure": failure}).encode())


main()
