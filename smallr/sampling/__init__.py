"""Draws text from models: prefill and decode with a key-value cache, sampling, stop conditions."""
