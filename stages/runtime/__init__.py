"""What every stage runs on: parameters, contracts, artefacts, caches, processes and Ray."""
