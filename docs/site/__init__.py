"""Writes the pages of the documentation that are made from the source: configs, losses, commands, the support matrix."""
