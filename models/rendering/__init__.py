"""Rasterisation, shading, cameras and PNCC ground truth."""
