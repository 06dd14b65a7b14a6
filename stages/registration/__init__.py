"""One scan's way through ``register``: where it is, its landmarks, the fit, its pictures."""
