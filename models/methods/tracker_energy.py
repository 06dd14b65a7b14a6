"""What MICA's tracker minimises: photometric and landmark terms of a posed FLAME head.

Paper: Zielonka, Bolkart, Thies, ECCV 2022, section 4, equation 2; the weights are the reference
code's (github.com/Zielon/metrical-tracker), which the paper leaves out. ``docs/tracking.md`` lists
the departures.

The head has its own frame (FLAME's); ``rotation`` and ``translation`` take it to the camera frame
(x right, y up, z toward the viewer, metres), ``focal`` and ``principal`` are PyTorch3D's normalised
device coordinates. Light lives in the camera frame.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as nnf
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.face.flame import CONTOUR_ROWS, FlameArrays, LandmarkEmbedding
from models.face.flame_layer import Flame, contour_rows
from models.face.rotations import matrix_of_six
from models.rendering.cameras import perspective_clip, perspective_pixels, pixels_of_ndc
from models.rendering.rasterize import rasterize
from models.rendering.shading import normalize, sh_basis, vertex_normals

State = dict[str, Tensor]
"""All unknowns of one frame: beta (S,), psi (E,), jaw (6,), eyes (2, 6), rotation (6,),
translation (3,), focal (), principal (2,), light (9, 3), texture (its albedo's), and ``trusted``
(N,), which vertices' albedo was seen; that one is never optimised."""

LID_PAIRS = ((37, 41), (38, 40), (43, 47), (44, 46))
LIP_PAIRS = ((61, 67), (62, 66), (63, 65))
"""Upper and lower landmarks whose differences the lid and lip terms compare: what is left of the
reference's denser sets when there are 68 points."""
OVAL = slice(0, 17)


@dataclass(frozen=True)
class TermWeights:
    """Weights of the energy; 0 switches a term off.

    Attributes:
        dense: Mean over visible pixels of the L1 colour difference, channels summed, RGB in [0, 1].
        points: Mean squared difference of the 68 points, as fractions of width and height.
        oval: The same of the contour alone.
        lids: The same of upper minus lower lid.
        lips: The same of upper minus lower lip.
        expression: Sum of squares of psi.
        texture: Prior of the albedo (see ``Albedo``).
        jaw: Sum of squares of the jaw's six numbers from rest.
        shape: Sum of squared differences of beta from the given shape.
        principal: Sum of squares of the principal point.
        eyes: Sum of squares of the eyes' twelve numbers from rest.
        eye_symmetry: Sum of squared differences between both eyes.
        camera: Of the 68 points while only the camera is fitted.
    """

    dense: float = 350.0
    points: float = 1000.0
    oval: float = 2000.0
    lids: float = 1000.0
    lips: float = 15000.0
    expression: float = 0.02
    texture: float = 0.04
    jaw: float = 0.05
    shape: float = 0.3
    principal: float = 1.0
    eyes: float = 1.0
    eye_symmetry: float = 8.0
    camera: float = 7000.0


class Albedo(nn.Module):
    """Colours of the surface's vertices, sRGB in about [0, 1], and how likely they are.

    With a basis (FLAME's texture space at the vertices) ``texture`` has one coefficient per mode,
    in standard deviations, and its prior is their sum of squares. Without one, the project's
    stand-in: ``texture`` is a free offset of every vertex from one grey; its prior is the sum of
    squares plus ``smoothness`` times the summed squared differences along edges, and only vertices
    that the first frames have seen are trusted later.
    """

    mean: Tensor
    basis: Tensor | None
    edges: Tensor

    def __init__(
        self,
        vertices: int,
        faces: Int[np.ndarray, "f 3"],
        mean: Float[np.ndarray, "n 3"] | None = None,
        basis: Float[np.ndarray, "n 3 k"] | None = None,
        *,
        grey: float = 0.6,
        smoothness: float = 8.0,
    ) -> None:
        """Keep a basis, or prepare free vertices.

        Args:
            vertices: Of the surface, n.
            faces: Its triangles.
            mean: Mean colours of the basis.
            basis: Colour per standard deviation.
            grey: Where free vertices start; the light's scale makes up for it.
            smoothness: Weight of edges in the prior of free vertices.
        """
        super().__init__()
        start = np.full((vertices, 3), grey) if mean is None else mean
        pairs = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
        edges = np.unique(np.sort(pairs, axis=1), axis=0)
        self.register_buffer("mean", torch.as_tensor(start, dtype=torch.float32), persistent=False)
        kept = None if basis is None else torch.as_tensor(basis, dtype=torch.float32)
        self.register_buffer("basis", kept, persistent=False)
        self.register_buffer("edges", torch.as_tensor(edges, dtype=torch.int64), persistent=False)
        self.smoothness = smoothness

    def zeros(self) -> Tensor:
        """Coefficients of the mean."""
        if self.basis is not None:
            return self.mean.new_zeros(self.basis.shape[2])
        return torch.zeros_like(self.mean)

    def colours(self, texture: Tensor) -> Float[Tensor, "n 3"]:
        """Albedo per vertex."""
        if self.basis is not None:
            return self.mean + self.basis @ texture
        return self.mean + texture

    def prior(self, texture: Tensor) -> Tensor:
        """What ``TermWeights.texture`` weighs."""
        total = texture.square().sum()
        if self.basis is None:
            along = texture[self.edges[:, 0]] - texture[self.edges[:, 1]]
            total = total + self.smoothness * along.square().sum()
        return total


class Surface(nn.Module):
    """The part of FLAME that the tracker looks at: the face's triangles and all landmarks."""

    faces: Tensor
    mark_corners: Tensor
    mark_bary: Tensor

    def __init__(
        self,
        arrays: FlameArrays,
        embedding: LandmarkEmbedding,
        region: Int[np.ndarray, " r"],
    ) -> None:
        """Gather the vertices that are needed.

        Args:
            arrays: The model.
            embedding: Its landmarks.
            region: Vertices of the face; a triangle counts whose corners are all in it.

        Raises:
            ValueError: No triangle lies in the region.
        """
        super().__init__()
        inside = np.zeros(len(arrays.v_template), bool)
        inside[region] = True
        dense = arrays.faces[inside[arrays.faces].all(axis=1)]
        if not len(dense):
            raise ValueError(
                f"the tracker needs triangles inside the face region, got none for {len(region)} "
                "vertices; check that masks and model belong together"
            )
        static = np.tile(embedding.static_faces, (CONTOUR_ROWS, 1))
        marks = arrays.faces[np.concatenate([embedding.dynamic_faces, static], axis=1)]
        static_bary = np.tile(embedding.static_bary, (CONTOUR_ROWS, 1, 1))
        bary = np.concatenate([embedding.dynamic_bary, static_bary], axis=1)
        self.used = np.unique(np.concatenate([dense.ravel(), marks.ravel()]))
        place = np.zeros(len(inside), np.int64)
        place[self.used] = np.arange(len(self.used))
        self.flame = Flame(arrays, vertices=self.used)
        content = {"faces": place[dense].astype(np.int32), "mark_corners": place[marks]}
        for name, value in content.items():
            self.register_buffer(name, torch.as_tensor(value), persistent=False)
        self.register_buffer(
            "mark_bary", torch.as_tensor(bary, dtype=torch.float32), persistent=False
        )

    def vertices(self, state: State) -> Float[Tensor, "n 3"]:
        """Vertices in the head's frame, metres; root and neck stay at rest, the camera turns."""
        still = torch.eye(3, dtype=state["jaw"].dtype, device=state["jaw"].device).expand(2, 3, 3)
        moving = torch.stack([state["jaw"], *state["eyes"]])
        R = torch.cat([still, matrix_of_six(moving)])
        return self.flame.articulated(state["beta"][None], state["psi"][None], R[None])[0]

    def landmarks(
        self, vertices: Float[Tensor, "n 3"], R: Float[Tensor, "3 3"]
    ) -> Float[Tensor, "68 3"]:
        """The 68 points of ``vertices``, contour first, as a head turned by ``R`` shows them."""
        yaw = torch.rad2deg(torch.atan2(-R[2, 0], torch.hypot(R[0, 0], R[1, 0])))
        row = contour_rows(yaw[None])[0]
        return (self.mark_bary[row][..., None] * vertices[self.mark_corners[row]]).sum(1)


def in_camera(points: Float[Tensor, "n 3"], state: State) -> Float[Tensor, "n 3"]:
    """Head frame to camera frame, metres."""
    return points @ matrix_of_six(state["rotation"]).T + state["translation"]


def to_pixels(
    points: Float[Tensor, "n 3"], state: State, height: int, width: int
) -> Float[Tensor, "n 2"]:
    """Camera-frame points to pixels of an image of the given size."""
    px, py = state["principal"].unbind()
    camera = pixels_of_ndc(state["focal"], px, py, height, width)
    return perspective_pixels(points[None], *camera)[0]


class Target(NamedTuple):
    """One frame at one scale.

    Attributes:
        image: RGB in [0, 1].
        points: Detected landmarks as fractions of width and height.
    """

    image: Float[Tensor, "1 3 h w"]
    points: Float[Tensor, "68 2"]


class Fragments(NamedTuple):
    """Visible surface points, frozen between rasterisations.

    Attributes:
        corners: Vertices of each point's triangle.
        bary: Its weights.
        shading: Spherical harmonics of its normal.
        weight: 1, or 0 where its albedo is not trusted.
    """

    corners: Int[Tensor, "p 3"]
    bary: Float[Tensor, "p 3"]
    shading: Float[Tensor, "p 9"]
    weight: Float[Tensor, " p"]


class Energy:
    """The terms for one surface and one albedo."""

    def __init__(
        self, surface: Surface, albedo: Albedo, weights: TermWeights, beta: Float[Tensor, " s"]
    ) -> None:
        """Keep the parts; ``beta`` is the shape that the shape term pulls to."""
        self.surface, self.albedo, self.weights = surface, albedo, weights
        self.beta = beta
        rest = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0], device=beta.device)
        self.rest = rest

    def fragments(self, state: State, height: int, width: int) -> Fragments:
        """The points of :meth:`visible`."""
        return self.visible(state, height, width)[2]

    @torch.no_grad()
    def visible(
        self, state: State, height: int, width: int
    ) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"], Fragments]:
        """Rasterise the current estimate with back faces culled: rows, columns and their points.

        Normals are frozen with the triangles, as the published gradient detaches them.

        Raises:
            ValueError: The face lies outside the image or behind the camera.
        """
        points = in_camera(self.surface.vertices(state), state)
        near, far = -float(points[:, 2].max()), -float(points[:, 2].min())
        if not 0.0 < near < far < np.inf:
            raise ValueError(
                f"the tracked head lies {near:.3g} to {far:.3g} m before the camera; the landmarks "
                "of this frame are probably not those of a face"
            )
        faces = self.surface.faces
        px, py = state["principal"].unbind()
        camera = pixels_of_ndc(state["focal"], px, py, height, width)
        clip = perspective_clip(
            points[None], *camera, height, width, near=0.9 * near, far=1.1 * far
        )
        ids, bary, _ = rasterize(clip, faces, height, width, True)
        seen = ids[0] >= 0
        if not bool(seen.any()):
            raise ValueError("the tracked head has left the image; no pixel shows the face")
        corners = faces.long()[ids[0][seen].long()]
        bary = bary[0][seen]
        normals = vertex_normals(points, faces)[corners]
        normal = normalize((bary[..., None] * normals).sum(1))
        trusted = (bary * state["trusted"][corners]).sum(1) > 0.99
        rows, columns = seen.nonzero(as_tuple=True)
        basis = sh_basis(normal, "tracker")
        return rows, columns, Fragments(corners, bary, basis, trusted.to(bary.dtype))

    def shaded(self, state: State, fragments: Fragments) -> Float[Tensor, "p 3"]:
        """Lambertian colours of the visible points."""
        colours = self.albedo.colours(state["texture"])[fragments.corners]
        albedo = (fragments.bary[..., None] * colours).sum(1)
        return albedo * (fragments.shading @ state["light"])

    def dense(
        self, vertices: Float[Tensor, "n 3"], state: State, target: Target, fragments: Fragments
    ) -> Tensor:
        """Mean L1 difference of the model's colours and the image where the points project."""
        height, width = target.image.shape[2:]
        points = (fragments.bary[..., None] * vertices[fragments.corners]).sum(1)
        place = to_pixels(points, state, height, width)
        size = place.new_tensor([width, height])
        grid = (2.0 * place / size - 1.0)[None, None]
        seen = nnf.grid_sample(target.image, grid, padding_mode="border", align_corners=False)
        difference = (self.shaded(state, fragments) - seen[0, :, 0].T).abs().sum(1)
        weight = fragments.weight
        return (weight * difference).sum() / weight.sum().clamp_min(1.0)

    def terms(self, state: State, target: Target, fragments: Fragments | None) -> dict[str, Tensor]:
        """All weighted terms by name; the dense one only with ``fragments``."""
        w = self.weights
        head = self.surface.vertices(state)
        R = matrix_of_six(state["rotation"])
        vertices = head @ R.T + state["translation"]
        found = self._points(vertices, R, state, target)
        apart = found - target.points
        out = {
            "points": w.points * apart.square().mean(),
            "oval": w.oval * apart[OVAL].square().mean(),
            "lids": w.lids * _gaps(apart, LID_PAIRS).square().mean(),
            "lips": w.lips * _gaps(apart, LIP_PAIRS).square().mean(),
            "expression": w.expression * state["psi"].square().sum(),
            "jaw": w.jaw * (state["jaw"] - self.rest).square().sum(),
            "eyes": w.eyes * (state["eyes"] - self.rest).square().sum(),
            "eye_symmetry": w.eye_symmetry * (state["eyes"][0] - state["eyes"][1]).square().sum(),
            "shape": w.shape * (state["beta"] - self.beta).square().sum(),
            "principal": w.principal * state["principal"].square().sum(),
        }
        if fragments is not None:
            out["dense"] = w.dense * self.dense(vertices, state, target, fragments)
            out["texture"] = w.texture * self.albedo.prior(state["texture"])
        return out

    def camera_terms(self, state: State, target: Target) -> dict[str, Tensor]:
        """The landmarks alone, of a head that is not moved by the optimiser."""
        R = matrix_of_six(state["rotation"])
        vertices = self.surface.vertices(state) @ R.T + state["translation"]
        apart = self._points(vertices, R, state, target) - target.points
        principal = self.weights.principal * state["principal"].square().sum()
        return {"points": self.weights.camera * apart.square().mean(), "principal": principal}

    def _points(
        self, vertices: Float[Tensor, "n 3"], R: Float[Tensor, "3 3"], state: State, target: Target
    ) -> Float[Tensor, "68 2"]:
        """Projected landmarks as fractions of width and height."""
        height, width = target.image.shape[2:]
        marks = self.surface.landmarks(vertices, R.detach())
        place = to_pixels(marks, state, height, width)
        return place / place.new_tensor([width, height])


def _gaps(apart: Float[Tensor, "68 2"], pairs: tuple[tuple[int, int], ...]) -> Float[Tensor, "k 2"]:
    """Error of upper minus lower point for each pair."""
    upper, lower = ([pair[k] for pair in pairs] for k in (0, 1))
    return apart[upper] - apart[lower]
