"""68 points in photographs: detector, predictor, providers, files, errors."""
