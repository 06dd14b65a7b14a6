"""Geometry of points and triangle meshes."""

from models.geometry.alignment import Similarity, align_similarity
from models.geometry.nearest import ClosestPointIndex, ClosestPoints, closest_points

__all__ = [
    "ClosestPointIndex",
    "ClosestPoints",
    "Similarity",
    "align_similarity",
    "closest_points",
]
