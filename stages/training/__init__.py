"""What the training stages share: fingerprints, checkpoints, data assembly, workers."""
