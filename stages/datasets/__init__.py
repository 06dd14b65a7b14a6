"""Readers of raw data sets in their owners formats, one module each."""
