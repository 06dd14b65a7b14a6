"""Geometry, rendering, networks and methods on arrays: no paths, no YAML, no argv."""
