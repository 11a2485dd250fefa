"""Discriminators: how likely is a plan right, said by a model in one word, by a model that reasons, or by an oracle."""
