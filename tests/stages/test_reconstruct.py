"""Which photographs make a mesh, which face of a photograph, and what a joint solution answers."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pytest

from models.methods.pix2face_camera import FaceCamera
from stages import reconstruct
from stages.benchmarks.benchmark_photos import Job, Photo
from stages.inference.overlay import overlay
from stages.inference.types import Reconstruction
from stages.reconstruct import largest_face, reconstruct_job, with_companions

FACES = np.array([[0, 1, 2]])


def photo(shade: int, reason: str = "") -> Photo:
    """A flat picture, which tells photographs apart."""
    ok, data = cv2.imencode(".png", np.full((8, 8, 3), shade, np.uint8))
    assert ok
    return Photo(data.tobytes(), np.full((68, 2), float(shade)), "test", reason)


def job(item: str, subject: str, *photos: Photo, expression: bool = False) -> Job:
    return Job("now", item, item, subject, "", expression, photos)


class Joint:
    """Answers with the mean shade of the photographs that it got together."""

    needs_landmarks = True
    joint = 3

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}

    def __call__(self, image: np.ndarray, points_px: np.ndarray) -> Reconstruction:
        return self._answer(float(image.mean()))

    def _answer(self, value: float) -> Reconstruction:
        return Reconstruction(np.full((3, 3), value), FACES, np.full((51, 3), value))

    def together(
        self, photographs: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> tuple[list[Reconstruction | None], list[str]]:
        dark = [image.mean() < 5 for image, _ in photographs]
        shades = [image.mean() for image, _ in photographs if image.mean() >= 5]
        answers = [None if d else self._answer(10.0 * np.mean(shades)) for d in dark]
        return answers, ["too dark" if d else "" for d in dark]


def test_companions_are_the_next_photographs_of_the_same_person() -> None:
    photos = {name: photo(shade) for name, shade in zip("abcde", range(10, 60, 10), strict=True)}
    jobs = [job(f"1/{name}", "one", photos[name]) for name in "abc"]
    jobs += [job("2/d", "two", photos["d"]), job("1/e", "one", photos["e"], expression=True)]
    jobs.append(job("3", "three", photos["a"], photos["b"]))
    found = with_companions(jobs, 2)
    chosen = [[names(photos, one) for one in each.photos] for each in found]
    assert chosen == [["a", "b"], ["b", "c"], ["c", "a"], ["d"], ["e"], ["a", "b"]]
    assert [len(each.photos) for each in with_companions(jobs, 8)] == [3, 3, 3, 1, 1, 2]
    assert with_companions(jobs, 1) == jobs


def names(photos: dict[str, Photo], one: Photo) -> str:
    return next(name for name, each in photos.items() if each is one)


def test_photographs_are_solved_together_and_losses_are_said() -> None:
    several = job("x", "one", photo(20), photo(2), photo(40), photo(30, "truncated"))
    row = reconstruct_job(several, Joint)
    assert row["photographs"] == 2
    assert row["reason"] == "2 of 4 photographs left out: too dark; truncated"
    assert b"v 300" in row["mesh"]
    alone = reconstruct_job(job("x", "one", photo(20)), Joint)
    assert b"v 20" in alone["mesh"]
    assert alone["reason"] == ""
    lost = reconstruct_job(job("x", "one", photo(2), photo(3)), Joint)
    assert lost == {"photographs": 0, "reason": "too dark"}

    class Alone(Joint):
        joint = 1

    averaged = reconstruct_job(job("x", "one", photo(20), photo(40)), Alone)
    assert b"v 30" in averaged["mesh"]


def test_the_largest_face_is_taken_and_of_equal_ones_the_most_central() -> None:
    small, large = np.array([10.0, 10, 30, 30]), np.array([50.0, 20, 90, 60])
    assert largest_face([small, large], 100, 100) is large
    left, middle = np.array([0.0, 0, 40, 40]), np.array([30.0, 30, 70, 70])
    assert largest_face([left, middle], 100, 100) is middle
    assert largest_face([middle, left], 100, 100) is middle


@pytest.mark.parametrize("k", [0.0, 1 / 300])
def test_overlay_draws_the_head_where_the_camera_puts_it(k: float) -> None:
    shown = np.array([[-20.0, -20, 0], [20, -20, 0], [0, 25, 0]])
    camera = FaceCamera(np.eye(3), 1.0, k, np.array([5.0, 3.0]), np.array([50.0, 40.0]))
    points = np.full((68, 2), 70.0)
    answer = Reconstruction(shown, FACES, np.zeros((51, 3)), shown, camera, points_px=points)
    drawn = overlay(np.zeros((80, 100, 3), np.uint8), answer)
    assert drawn.shape == (80, 200, 3)
    lit = drawn[:, 100:].max(axis=2) > 0
    assert lit[30, 55]  # the triangle's middle: (5, 3) mm beside the principal point
    assert not lit[30, 20]
    dot = drawn[69:71, 169:171].reshape(-1, 3).mean(axis=0)
    np.testing.assert_allclose(dot, reconstruct_dot(), atol=3)


def reconstruct_dot() -> tuple[int, int, int]:
    from stages.inference.overlay import DOT_RGB

    return DOT_RGB


def test_two_photographs_of_one_name_are_refused(tmp_path, monkeypatch) -> None:
    weights = tmp_path / "model.safetensors"
    weights.touch()
    monkeypatch.setattr(reconstruct, "read_facts", lambda _: {"method": "pix2face", "weights": "x"})
    images = [tmp_path / "a" / "one.png", tmp_path / "b" / "one.jpg"]
    with pytest.raises(ValueError, match="got 'one' twice"):
        reconstruct.reconstruct_photos(images, weights, tmp_path, section=None, data=tmp_path)  # type: ignore[arg-type]
