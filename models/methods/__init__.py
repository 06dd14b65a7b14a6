"""The reconstruction methods, one module each."""
