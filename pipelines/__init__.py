"""The graph, its engines, lineage and the command line."""
