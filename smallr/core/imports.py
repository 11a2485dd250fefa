"""Imports modules before they are needed."""

from __future__ import annotations

import importlib
import threading


def import_beside(*modules: str) -> None:
    """Begins to import modules in a thread, beside what leaves Python alone meanwhile; whoever needs one waits for it."""

    def work() -> None:
        for module in modules:
            importlib.import_module(module)

    threading.Thread(target=work, name="imports").start()
