"""Who is who: every person of every data set is drawn from a seed of their own.

Data sets never share a person, so benchmark subjects are in no training set. A person is the same
shape and look wherever their id appears.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from models.procedural.appearance import Appearance, sample_appearance
from models.procedural.identity import Identity, sample_identity
from stages.runtime.compute import item_rng


@dataclass(frozen=True, slots=True)
class Person:
    """One synthetic person.

    Attributes:
        source: Data set key, e.g. ``lyhm``.
        subject: Id in the data set's own form.
        identity: Head shape.
        appearance: Skin, eyes, hair.
    """

    source: str
    subject: str
    identity: Identity
    appearance: Appearance

    @property
    def key(self) -> str:
        """Unique name over all data sets."""
        return f"{self.source}/{self.subject}"


def person(seed: int, source: str, subject: str, sex: str | None = None) -> Person:
    """Draw the person with this id.

    Args:
        seed: Root seed.
        source: Data set key.
        subject: Id in the data set.
        sex: ``woman`` or ``man`` where the id says so.
    """
    rng = item_rng(seed, f"person/{source}/{subject}")
    identity = sample_identity(rng, sex)
    return Person(source, subject, identity, sample_appearance(identity, rng))


def gapped_numbers(count: int, last: int, rng: np.random.Generator) -> list[int]:
    """Return ascending ids up to ``last`` with gaps, as published lists have them."""
    return sorted(int(n) + 1 for n in rng.choice(last, size=count, replace=False))


@dataclass(frozen=True, slots=True)
class PersonTruth:
    """What only tests and the report may know about a person."""

    subject: str
    sex: str
    age_years: float
    neutral: Float[np.ndarray, "v 3"]


def write_people(rows: list[PersonTruth], path: Path) -> None:
    """Write ``people.parquet``: subject, sex, age, neutral vertices (FLAME frame, metres)."""
    import pyarrow as pa

    from stages.runtime.artifacts import write_table

    ordered = sorted(rows, key=lambda row: row.subject)
    table = pa.table(
        {
            "subject": [row.subject for row in ordered],
            "sex": [row.sex for row in ordered],
            "age_years": pa.array([row.age_years for row in ordered], pa.float64()),
            "vertices": pa.array(
                [row.neutral.astype(np.float32).ravel() for row in ordered], pa.list_(pa.float32())
            ),
        }
    )
    write_table(table, path)
