"""smallr's own model behind OpenAI's protocol. Needs the extra `serve`."""
