"""pix2face on photographs, one by one or several of one person."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from models.face.morphable import LinearModel
from models.methods.pix2face import Boxes, Pix2Face, Pix2FaceConfig
from models.methods.pix2face_fit import ModelFit
from models.methods.pix2face_photo import FitSettings, PhotoFit, Seen
from models.networks.encoders.square_crop import landmark_square
from models.networks.train_loop import load_state
from stages.inference.types import Reconstruction
from stages.runtime.artifacts import read_json, read_safetensors, sha256_file
from stages.runtime.params import Pix2FaceFitParams


class Pix2FaceReconstructor:
    """Square crop, network, camera, linear model fit, landmarks."""

    needs_landmarks = True

    def __init__(self, checkpoint: Path, model: Path, section: Pix2FaceFitParams) -> None:
        """Read a checkpoint of the train stage and the converted 3DDFA folder.

        Raises:
            FileNotFoundError: One of them is not there.
            ValueError: The checkpoint is of another method, or from before landmarks were chosen.
        """
        state, facts = read_safetensors(checkpoint)
        if facts.get("method") != "pix2face":
            raise ValueError(
                f"expected a pix2face checkpoint, got {facts.get('method')!r} in {checkpoint}"
            )
        config, data = facts["config"], facts["data"]
        if "landmark_vertices" not in data:
            raise ValueError(
                f"expected a checkpoint with landmark vertices, got an older one, {checkpoint}; "
                "run train@pix2face again"
            )
        boxes = data["boxes"]
        net = Pix2Face(
            Pix2FaceConfig(
                config["size_px"],
                config["width"],
                config["depth"],
                config["background_weight"],
                Boxes(
                    tuple(boxes["pncc_low_mm"]), tuple(boxes["pncc_high_mm"]), boxes["offset_mm"]
                ),
                config["up"],
                config["target"],
            )
        )
        load_state(net, state)
        net.eval()
        linear = LinearModel.load(model)
        unit_m = float(read_json(model / "meta.json")["unit_m"])
        fit = ModelFit(linear, unit_m)
        self._keypoints, self._to_mm = linear.of_keypoints(), 1000.0 * unit_m
        settings = FitSettings(
            section.box_scale,
            section.gate_mm,
            section.coefficient_prior,
            section.min_correspondences,
            section.most_vertices,
            section.camera,
        )
        self._photo = PhotoFit(net, fit, settings)
        chosen = data["landmark_vertices"]
        self.landmark_vertices = None if chosen is None else np.array(chosen)
        self.validation_subjects = frozenset(data["validation_subjects"])
        self.joint = section.joint
        self.facts: dict[str, Any] = {
            "weights": facts["weights"],
            "synthetic": facts["synthetic"],
            "inputs": {
                "checkpoint": sha256_file(checkpoint),
                "model": sha256_file(model / "model.safetensors"),
            },
        }

    def see(self, image: UInt8[np.ndarray, "h w 3"], points_px: Float[np.ndarray, "68 2"]) -> Seen:
        """What one photograph shows, its face given by landmarks.

        Raises:
            ValueError: It does not show enough.
        """
        return self._photo.see(image, *landmark_square(points_px))

    def in_box(self, image: UInt8[np.ndarray, "h w 3"], box_px: Float[np.ndarray, "4"]) -> Seen:
        """What one photograph or video frame shows inside a face box.

        The box stands for the square around the face's landmarks: brows to chin, ear to ear, as
        the HOG detector's does roughly; the crop is ``box_scale`` times as wide. Call
        :meth:`answers` with the result.

        Args:
            image: RGB.
            box_px: Left, top, right, bottom.

        Raises:
            ValueError: The box is empty, or the photograph does not show enough; the message is the
                reason for the frame's row.
        """
        box = np.asarray(box_px, np.float64)
        return self._photo.see(image, (box[:2] + box[2:]) / 2, float((box[2:] - box[:2]).max()))

    def answers(self, photographs: Sequence[Seen]) -> list[Reconstruction]:
        """Reconstructions of photographs of one person: one identity, an expression for each.

        Raises:
            ValueError: A photograph shows too little.
        """
        fit = self._photo.fit
        solution = self._photo.solve(photographs)
        neutral = fit.neutral_mm(solution.identity)
        found = []
        for seen, expression in zip(photographs, solution.expressions, strict=True):
            posed = fit.posed_mm(solution.identity, expression)
            camera = seen.camera
            points = None if self.landmark_vertices is None else posed[self.landmark_vertices]
            perspective = {} if camera.k == 0 else {"focal_px": [camera.focal_px]}
            found.append(
                Reconstruction(
                    neutral,
                    fit.faces,
                    neutral[fit.keypoints[17:]],
                    posed,
                    camera,
                    {
                        "identity_sigma": solution.identity.tolist(),
                        "expression_sigma": expression.tolist(),
                        "head_yaw_pitch_roll_deg": list(camera.head_angles_deg()),
                        "rotation_cam_from_head": camera.rotation.reshape(-1).tolist(),
                        "px_per_mm": [camera.m],
                        "inverse_distance_per_mm": [camera.k],
                        "shift_mm": camera.shift.tolist(),
                        "principal_point_px": camera.centre_px.tolist(),
                        **perspective,
                    },
                    points,
                    None if points is None else camera.project(points),
                    seen.cloud_mm,
                    seen.cloud_rgb,
                )
            )
        return found

    def keypoints_mm(
        self, shape: Float[np.ndarray, " k"], expression: Float[np.ndarray, " e"]
    ) -> Float[np.ndarray, "68 3"]:
        """The face model's own 68 landmarks under raw coefficients, as 300W-LP stores them.

        Raises:
            ValueError: There are more coefficients than directions.
        """
        return self._to_mm * self._keypoints.shape(shape, expression)

    def __call__(
        self, image: UInt8[np.ndarray, "h w 3"], points_px: Float[np.ndarray, "68 2"]
    ) -> Reconstruction:
        """Predict maps, fit camera, identity and expression.

        Raises:
            ValueError: Too few pixels show a face, or they lie in a plane.
        """
        return self.answers([self.see(image, points_px)])[0]

    def together(
        self, photographs: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> tuple[list[Reconstruction | None], list[str]]:
        """Several photographs (RGB, 68 points) of one person by one joint solution.

        Returns:
            Per photograph the reconstruction, or None; and why not, empty where there is one.
        """
        seen: list[Seen | None] = []
        reasons = []
        for image, points in photographs:
            try:
                seen.append(self.see(image, points))
                reasons.append("")
            except ValueError as error:
                seen.append(None)
                reasons.append(str(error))
        usable = [one for one in seen if one is not None]
        try:
            found = iter(self.answers(usable) if usable else [])
        except ValueError as error:  # they determine nothing even together
            return [None] * len(seen), [reason or str(error) for reason in reasons]
        return [None if one is None else next(found) for one in seen], reasons
