"""Answers first or thinks first: modules decide for each question, over a frozen student."""
