"""The procedural head: geometry from anthropometry, appearance, photographs of it."""
