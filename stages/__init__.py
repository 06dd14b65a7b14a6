"""One module per DVC stage, and the shared contracts between them."""
