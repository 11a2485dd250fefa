"""Holds what every other package stands on: errors, caches, the device mesh, files written whole or not at all."""
