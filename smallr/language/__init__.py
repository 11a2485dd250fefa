"""Offers one interface for language models: a local one, or any server that speaks OpenAI's protocol."""
