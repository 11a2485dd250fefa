"""Loads a solution that is not trusted and answers calls to it. Arguments: the file, a socket's descriptor."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from wire import ProtocolError, Wire

ITEMS = 1000  # of an iterator, sent at once


def main() -> None:
    """Answers until the other end is gone."""
    path, descriptor = sys.argv[1], int(sys.argv[2])
    sys.path.pop(0)
    sys.set_int_max_str_digits(0)
    objects = []

    def export(value):
        objects.append(value)
        return len(objects) - 1

    wire = Wire(descriptor, export, lambda number, kind: objects[number])
    null = os.open("/dev/null", os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    namespace = {"__name__": "solution"}

    def answer(request):
        operation = request["operation"]
        if operation == "global":
            return namespace[request["name"]]
        if operation == "attribute":
            return getattr(request["of"], request["name"])
        if operation == "call":
            return request["of"](*request["args"], **request["kwargs"])
        if operation == "item":
            return request["of"][request["key"]]
        if operation == "iterate":
            return iter(request["of"])
        taken = []
        for item in request["of"]:
            taken.append(item)
            if len(taken) == ITEMS:
                break
        return taken

    try:
        with open(path, encoding="utf-8") as file:
            exec(compile(file.read(), path, "exec"), namespace)
        wire.send({"value": None})
    except BaseException as error:
        wire.send({"error": type(error).__name__, "message": str(error)[:300]})
        return
    while True:
        try:
            request = wire.receive()
        except (EOFError, ProtocolError):
            return
        try:
            reply = {"value": answer(request)}
            wire.send(reply)
        except BaseException as error:
            wire.send({"error": type(error).__name__, "message": str(error)[:300]})


main()
