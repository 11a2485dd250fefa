"""Serves smallr's own model in OpenAI's protocol. Needs the extra `serve`."""
