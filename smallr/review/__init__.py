"""Lets people check what machines wrote: a page to decide on, decisions on disk, figures, and data with the decisions in it."""
