"""Answer first or think first: modules that decide for each question, over a frozen student."""
