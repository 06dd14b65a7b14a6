"""Networks and how they are trained: encoders, decoders, losses, the loop."""
