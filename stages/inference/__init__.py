"""Trained methods applied to photographs."""
