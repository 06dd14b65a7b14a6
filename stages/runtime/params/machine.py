"""Where things lie and where work runs; none of it decides a byte but the data themselves."""

from pathlib import Path

from pydantic import Field

from stages.runtime.params.section import Section


class DatasetParams(Section):
    """Where one raw data set lies."""

    root: Path = Field(description="folder in the owner's own layout")


class ModelParams(Section):
    """Where one raw face model lies."""

    root: Path = Field(description="folder that holds the owner's files")


class ComputeParams(Section):
    """How maps over items run; never changes any output byte."""

    workers: int = Field(ge=1, description="processes for a map over items")
    ray_threshold_s: float = Field(
        ge=0, description="below this estimate no Ray is started for a map: it runs in processes"
    )
    object_store_mb: int = Field(ge=80, description="Ray object store when no head is attached, MB")


class ServersParams(Section):
    """What ``faceline up`` starts on this machine; changes no output byte, read by no stage."""

    host: str = Field(description="address they listen at")
    folder: Path = Field(description="their data, logs and secrets")
    secrets: bool = Field(description="ask clients for a login (Prefect) and a token (Ray)")
    prefect_port: int = Field(ge=1, le=65535)
    ray_port: int = Field(ge=1, le=65535)
    ray_dashboard_port: int | None = Field(description="null: no dashboard, no job server")
    ray_cpus: int = Field(ge=1, description="cores that the head hands out")
    ray_object_store_mb: int = Field(ge=80, description="shared memory for objects, MB")
