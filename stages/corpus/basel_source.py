"""Morphable models in Basel layouts, made from a population of procedural heads.

A Basel vertex is a fixed point on a triangle of the head, so a basis there is a linear map of a
basis on the head's own vertices. Both come from one principal component analysis: a coefficient
vector gives the Basel mesh exactly, and with it the whole head that a photograph needs.
The population is closed under mirroring, hence so is the span of the basis.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from stages.corpus import basel_topology, studio
from stages.corpus.linear_files import LinearFiles
from stages.corpus.scan import waves
from stages.corpus.surface import Anchors, outer_anchors
from stages.corpus.w300lp_files import MIRROR_68
from stages.runtime.artifacts import write_npz
from stages.runtime.compute import item_rng

UM = 1e6
PUPIL_UM = np.array([0.0, 29_000.0, 92_000.0])  # where the middle between the pupils lies
MOUTH_OPEN = 0.6  # how far, when keypoints are told apart
RIPPLE_MM = 0.03  # smooth noise on expressions, so that every published component exists


@dataclass(frozen=True, slots=True)
class Basis:
    """Principal components on the head's vertices and on a Basel layout.

    Attributes:
        mean: Mean of the samples on the head (V, 3).
        head: (3V, K) such that the layout's columns have unit norm.
        dual: (3V, K); its transpose takes a displacement of the head to coefficients.
        sigma: Standard deviation along each component (K,), the samples' unit.
    """

    mean: Float[np.ndarray, "v 3"]
    head: Float[np.ndarray, "n k"]
    dual: Float[np.ndarray, "n k"]
    sigma: Float[np.ndarray, "k"]

    def coefficients(self, values: Float[np.ndarray, "v 3"]) -> Float[np.ndarray, "k"]:
        """Return the coefficients of head vertices (or displacements) nearest on the layout."""
        return np.asarray((values - self.mean).ravel() @ self.dual)

    def layout(self, anchors: Anchors) -> Float[np.ndarray, "m k"]:
        """Return the basis on a layout, xyz interleaved, in the files' single precision."""
        count = self.head.shape[1]
        values = self.head.astype(np.float32).reshape(-1, 3 * count)
        return anchors.flat(values).reshape(-1, count)


@dataclass(frozen=True, slots=True)
class Model:
    """A linear model on a Basel layout together with its companion on the head.

    Attributes:
        anchors: The shape layout's points on the head.
        expression_anchors: The expression layout's points on the head.
        shape: Identity components, micrometres in the Basel frame.
        expression: Expression components, micrometres.
        keypoints: Vertices of the 68 landmarks in the shape layout.
    """

    anchors: Anchors
    expression_anchors: Anchors
    shape: Basis
    expression: Basis
    keypoints: Int[np.ndarray, "68"]

    def head_vertices(
        self, alpha: Float[np.ndarray, "k"], beta: Float[np.ndarray, "e"]
    ) -> Float[np.ndarray, "v 3"]:
        """Return the whole head of coefficients (micrometres, Basel frame)."""
        moved = self.shape.head @ alpha + self.expression.head @ beta
        return self.shape.mean + self.expression.mean + moved.reshape(-1, 3)


def basel_from_head() -> Float[np.ndarray, "3"]:
    """Return the Basel frame's origin in the head frame (metres)."""
    mean, head = studio.mean_vertices(), studio.head()
    eyes = [mean[head.masks[f"{side}_eyeball"]] for side in ("left", "right")]
    pupils = np.array([ball[np.argmax(ball[:, 2])] for ball in eyes])
    origin: np.ndarray = pupils.mean(axis=0) - PUPIL_UM / UM
    origin[0] = 0.0
    return origin


@lru_cache(maxsize=3)
def layout_anchors(name: str) -> Anchors:
    """Return the points of ``full``, ``trimmed`` or ``2017`` on the head's triangles."""
    layout = basel_topology.edition_2017() if name == "2017" else basel_topology.full()
    shape = studio.shape_of(studio.mean_vertices())
    anchors, hit = outer_anchors(
        shape.vertices_mm, shape.faces, shape.origin_mm, layout.directions, 450.0
    )
    if not hit.all():
        raise ValueError(f"{int((~hit).sum())} Basel vertices miss the head; change REACH_DEG")
    if name == "trimmed":
        trim = basel_topology.trim_indices()
        return Anchors(anchors.triangles[trim], anchors.weights[trim])
    return anchors


def mirrored(vertices: Float[np.ndarray, "v 3"]) -> Float[np.ndarray, "v 3"]:
    """Return the mirror image of head vertices (or displacements), in the same order."""
    return vertices[_mirror()] * np.array([-1.0, 1.0, 1.0])


@lru_cache(maxsize=1)
def _mirror() -> Int[np.ndarray, "v"]:
    from scipy.spatial import cKDTree

    canonical = np.asarray(studio.head().canonical_mm)
    distance, index = cKDTree(canonical).query(canonical * [-1.0, 1.0, 1.0])
    if distance.max() > 1e-3:
        raise ValueError(f"expected a mirror-symmetric mean head, off by {distance.max():.3g} mm")
    return np.asarray(index)


def principal_components(
    samples: Float[np.ndarray, "s v 3"], anchors: Anchors, count: int
) -> Basis:
    """Return components with unit norm on the layout, largest first, signs fixed.

    Raises:
        ValueError: The samples have a lower rank than asked for.
    """
    from scipy.sparse import csr_matrix

    number, vertices, _ = samples.shape
    rows = np.repeat(np.arange(len(anchors.triangles)), 3)
    place = (anchors.weights.ravel(), (rows, anchors.triangles.ravel()))
    gather = csr_matrix(place, shape=(len(anchors.triangles), vertices))
    metric = gather.T @ gather
    mean = samples.mean(axis=0)
    centred = samples - mean
    gram = np.zeros((number, number))
    for axis in range(3):
        part = centred[:, :, axis]
        gram += part @ (metric @ part.T)
    values, vectors = np.linalg.eigh(gram)
    values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
    if len(values) < count or values[-1] < 1e-10 * values[0]:
        raise ValueError(
            f"{count} components need that many independent samples; "
            f"raise synthesize.population (now {number} with mirror images)"
        )
    basis = centred.reshape(number, -1).T @ (vectors / np.sqrt(values))
    largest = np.argmax(np.abs(basis), axis=0)
    basis *= np.sign(basis[largest, np.arange(count)])
    dual = (metric @ basis.reshape(vertices, -1)).reshape(basis.shape)
    return Basis(mean, basis, dual, np.sqrt(values / number))


def population(seed: int, name: str, count: int) -> Float[np.ndarray, "s v 3"]:
    """Return neutral heads and their mirror images, Basel frame, micrometres."""
    from models.procedural.identity import sample_identity

    origin = basel_from_head()
    heads = []
    for k in range(count):
        identity = sample_identity(item_rng(seed, f"population/{name}/{k}"))
        vertices = UM * (np.asarray(studio.head().vertices(identity)) - origin)
        heads += [vertices, mirrored(vertices)]
    return np.stack(heads)


def expressions(seed: int, name: str, count: int) -> Float[np.ndarray, "s v 3"]:
    """Return expression displacements of the mean head and their mirror images, micrometres."""
    from models.procedural.expression import sample_expression
    from models.procedural.identity import Identity

    neutral = studio.mean_vertices()
    canonical = np.asarray(studio.head().canonical_mm)
    moved = []
    for k in range(count):
        rng = item_rng(seed, f"expressions/{name}/{k}")
        expression = sample_expression(rng, float(rng.uniform(0.3, 1.0)))
        vertices = np.asarray(studio.head().vertices(Identity.mean(), expression))
        ripple = np.stack([waves(canonical, rng, (40.0, 120.0)) for _ in range(3)], axis=1)
        offset = UM * (vertices - neutral) + 1000.0 * RIPPLE_MM * ripple
        moved += [offset, mirrored(offset)]
    return np.stack(moved)


LAYOUTS = {  # shape and expression layout of each model
    "bfm2009": ("full", "trimmed"),
    "3ddfa": ("trimmed", "trimmed"),
    "bfm2017": ("2017", "2017"),
}


@lru_cache(maxsize=2)
def model(seed: int, name: str, heads: int, shapes: int, expression_count: int) -> Model:
    """Return the model of a name in ``LAYOUTS``.

    Args:
        seed: Root seed.
        name: Which model; the 2009 family shares one population.
        heads: People behind the identity components.
        shapes: Identity components.
        expression_count: Expression components.
    """
    family = "2017" if name == "bfm2017" else "2009"
    shape_anchors, expression_anchors = (layout_anchors(layout) for layout in LAYOUTS[name])
    shape = principal_components(population(seed, family, heads), shape_anchors, shapes)
    moves = expressions(seed, family, max(expression_count, 40))
    expression = principal_components(moves, expression_anchors, expression_count)
    points = keypoints(shape_anchors)
    return Model(shape_anchors, expression_anchors, shape, expression, points)


def texture(
    seed: int, name: str, anchors: Anchors, count: int
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n t"], Float[np.ndarray, "t"]]:
    """Return mean, unit-norm basis and deviations of vertex colours (RGB in [0, 1])."""
    from models.procedural.albedo import albedo_bytes
    from models.procedural.appearance import sample_appearance
    from models.procedural.identity import sample_identity

    canonical = anchors.flat(np.asarray(studio.head().canonical_mm))
    on_eye = studio.on_eye(canonical)
    colours = []
    for k in range(count + 8):
        rng = item_rng(seed, f"texture/{name}/{k}")
        look = sample_appearance(sample_identity(rng), rng)
        colours.append(albedo_bytes(canonical, on_eye, look).astype(np.float32).ravel() / 255.0)
    samples = np.stack(colours)
    mean = samples.mean(axis=0)
    centred = samples - mean
    values, vectors = np.linalg.eigh((centred @ centred.T).astype(np.float64))
    values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
    basis = centred.T @ (vectors / np.sqrt(values)).astype(np.float32)
    largest = np.argmax(np.abs(basis), axis=0)
    basis *= np.sign(basis[largest, np.arange(count)])
    return mean.astype(np.float64), basis, np.sqrt(values / len(samples))


def keypoints(anchors: Anchors) -> Int[np.ndarray, "68"]:
    """Return the layout's vertices next to the 68 landmarks of the mean head.

    Next to them with the mouth shut and open: the lips touch when it is shut, and a vertex of the
    upper lip must not stand for a landmark of the lower one. The left ones are the mirror images of
    the right ones.
    """
    from scipy.spatial import cKDTree

    from models.procedural.expression import Expression
    from models.procedural.identity import Identity

    head = studio.head()
    opened = np.asarray(head.vertices(Identity.mean(), Expression.of(jaw_open=MOUTH_OPEN)))
    states = (studio.mean_vertices(), opened)
    points = np.hstack([anchors.flat(vertices) for vertices in states])
    landmarks = np.hstack([np.asarray(head.landmarks(vertices)) for vertices in states])
    tree = cKDTree(points)
    found = np.asarray(tree.query(landmarks)[1], dtype=np.int64)
    left = np.flatnonzero(np.arange(68) > MIRROR_68)
    images = points[found[MIRROR_68[left]]] * np.array([-1.0, 1.0, 1.0, -1.0, 1.0, 1.0])
    found[left] = tree.query(images)[1]
    return found


def segments(anchors: Anchors) -> Int[np.ndarray, "v 4"]:
    """Return 0/1 regions of a layout: nose, eyes, mouth, rest."""
    x, y, z = np.abs(anchors.flat(np.asarray(studio.head().canonical_mm))).T
    signed_y = anchors.flat(np.asarray(studio.head().canonical_mm))[:, 1]
    front = z > 40.0
    nose = front & (x < 19.0) & (signed_y < 2.0) & (signed_y > -46.0)
    eyes = front & (np.abs(x - 31.5) < 22.0) & (y < 14.0)
    mouth = front & (x < 32.0) & (np.abs(signed_y + 65.0) < 16.0)
    rest = ~(nose | eyes | mouth)
    return np.stack([nose, eyes & ~nose, mouth, rest], axis=1).astype(np.uint8)


def linear_files(
    built: Model,
    faces: Int[np.ndarray, "f 3"],
    colours: tuple[np.ndarray, np.ndarray, np.ndarray],
    unit_um: float,
) -> LinearFiles:
    """Return a model's arrays in the owner's unit.

    Args:
        built: The model.
        faces: Triangles of the shape layout.
        colours: Mean, basis and deviations of vertex colours; empty for none.
        unit_um: Micrometres per unit.
    """
    return LinearFiles(
        mean_shape=built.anchors.flat(built.shape.mean).ravel() / unit_um,
        shape_basis=built.shape.layout(built.anchors),
        shape_sigma=built.shape.sigma / unit_um,
        mean_expression=built.expression_anchors.flat(built.expression.mean).ravel() / unit_um,
        expression_basis=built.expression.layout(built.expression_anchors),
        expression_sigma=built.expression.sigma / unit_um,
        texture_mean=colours[0],
        texture_basis=colours[1],
        texture_sigma=colours[2],
        faces=faces,
        keypoints=built.keypoints,
    )


def write_truth(built: Model, truth: Path) -> None:
    """Write ``companion.npz``: the mean on the head's own vertices (um), deviations, anchors."""
    truth.mkdir(parents=True, exist_ok=True)
    arrays = {
        "mean": built.shape.mean + built.expression.mean,
        "shape_sigma": built.shape.sigma,
        "expression_sigma": built.expression.sigma,
        "origin_m": basel_from_head(),
        "triangles": built.anchors.triangles.astype(np.int32),
        "weights": built.anchors.weights.astype(np.float32),
    }
    write_npz(arrays, truth / "companion.npz")
