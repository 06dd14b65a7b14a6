"""Face models: FLAME, linear 3DMMs, and landmarks on both."""
