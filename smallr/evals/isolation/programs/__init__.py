"""Programs that run inside the sandbox, and what they say to each other. They import the standard library alone."""
