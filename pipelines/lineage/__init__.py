"""Where an artefact came from, read from dvc.lock and the artefact's own header."""
