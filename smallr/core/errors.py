"""The error that a user can mend: command lines print its message alone, everything else with a trace."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input, configuration or environment; the message names the place and says what to do."""
