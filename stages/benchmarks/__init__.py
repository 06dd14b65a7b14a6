"""Benchmarks in their owners' layouts: their files, landmarks and official result files."""
