"""The graph, its engines, lineage and the command line."""

from stages.runtime.process import go_offline

go_offline()  # before DVC, Prefect or Ray are imported: they read their switches then
