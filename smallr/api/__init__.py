"""What `import smallr` offers beside the packages themselves; see docs/api.md."""
