"""Benchmarks in their owners' layouts: which files belong together, and the official result files."""
