"""Reproducible measurements: `python -m bench [name]`."""
