"""Every source at its smallest: owners' layout, dirt, truth, and the same bytes again."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from stages.corpus import basel_source, three_ddfa
from stages.corpus.w300lp_files import Pose, matlab_points, mirrored_points, project
from stages.datasets.base import Adapter, ScanRow
from stages.datasets.registry import DATASETS
from stages.runtime.artifacts import read_table
from stages.runtime.params import ComputeParams, SynthesizeParams
from stages.synthesize import LABEL, SOURCES, synthesize

SEED = 9
COMPUTE = ComputeParams(workers=1, ray_threshold_s=1e9, object_store_mb=100)
SIZES = SynthesizeParams.model_validate(
    {
        "broken": 1,
        "seconds_per_item": 0.1,
        "morphable": {"heads": 110, "modes_2009": 3, "modes_2017": 3, "expressions_2017": 3},
        "faces_300w": {"faces": 4, "views": 2, "flip_every": 2, "aflw": 2},
        "lyhm": {"subjects": 2, "photos": 1, "size_px": 96, "scan_vertices": 4000},
        "stirling": {"subjects": 2, "photos": 1, "size_px": 120, "scan_vertices": 4000},
        "facewarehouse": {
            "subjects": 1, "poses": 2, "meshes": 1, "blendshapes": 0, "size_px": 96,
        },
        "frgc": {
            "subjects": 6, "scans": 1, "photos": 1, "size_px": 96, "scan_vertices": 4000,
        },
        "bu3dfe": {
            "subjects": 5, "scans": 2, "photos": 2, "size_px": 96, "scan_vertices": 4000,
        },
        "bp4d": {"subjects": 3, "frames": 3, "size_px": 96, "scan_vertices": 4000},
        "now": {"subjects": 2, "photos": 4, "size_px": 96, "scan_vertices": 4000},
        "vggface2": {"identities": 2, "photos": 2, "size_px": 64},
        "d3dfacs": {
            "subjects": 4, "sequences": 1, "scans": 3, "photos": 1, "size_px": 96,
            "scan_vertices": 4000,
        },
        "florence": {"subjects": 4, "photos": 2, "size_px": 96, "scan_vertices": 4000},
    }
)  # fmt: skip


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``raw/<source>`` and ``truth/<source>``, made when first asked for."""
    return tmp_path_factory.mktemp("corpus")


def made(corpus: Path, source: str) -> Path:
    """The raw folder of a source."""
    out = corpus / "raw" / source
    if not out.exists():
        synthesize(source, out, corpus / "truth" / source, SIZES, COMPUTE, SEED)
    return out


def outcomes(adapter: Adapter, root: Path) -> dict[str, str]:
    """Item to failure message; empty where the item reads."""
    found = {}
    for ref in adapter.discover(root):
        try:
            adapter.read(root, ref)
            found[ref.item_id] = ""
        except (ValueError, OSError) as error:
            found[ref.item_id] = str(error)
    return found


def digest(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.mark.parametrize(
    ("source", "failures"),
    [
        ("lyhm", ["truncated", "empty", "NaN", "no faces", "67 landmarks"]),
        ("stirling", ["truncated", "NaN", "6 landmarks", "no faces"]),
        ("frgc", ["truncated", "damaged gzip", "481 rows", "is valid", "not a number"]),
        ("bu3dfe", ["BMP file is truncated", "list 'point'", "refers to", "NaN", "no faces"]),
        ("bp4d", ["truncated", "NaN", "no faces", "no faces"]),
        ("facewarehouse", ["JPEG|PNG", "73", "no faces", "shape.bs is truncated"]),
        ("now", ["truncated", "os.getcwd", "NaN"]),
        ("vggface2", ["truncated"]),
        ("d3dfacs", ["truncated", "fewer than 3 numbers|no faces", "NaN"]),
        ("florence", ["truncated", "no faces", "NaN", "the nose tip is"]),
        ("300w_lp", ["truncated", "Pose_Para"]),
    ],
)
def test_our_readers_take_everything_but_the_broken_inputs(
    corpus: Path, source: str, failures: list[str]
) -> None:
    root = made(corpus, source)
    assert "SYNTHETIC" in (root / LABEL).read_text()
    assert "SYNTHETIC" in (corpus / "truth" / source / LABEL).read_text()
    found = outcomes(DATASETS[source], root)
    failed = [message for message in found.values() if message]
    assert len(failed) == len(failures), failed
    for words in failures:
        assert any(re.search(words, message) for message in failed), (words, failed)
    assert len(found) > len(failed)


def test_same_parameters_give_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    first = made(corpus, "now")
    synthesize("now", tmp_path / "raw", tmp_path / "truth", SIZES, COMPUTE, SEED)
    assert digest(first) == digest(tmp_path / "raw")
    assert digest(corpus / "truth" / "now") == digest(tmp_path / "truth")


@pytest.mark.parametrize("source", ["d3dfacs", "florence"])
def test_the_small_scan_sets_give_the_same_bytes_in_any_order(
    corpus: Path, tmp_path: Path, source: str
) -> None:
    from stages.corpus import d3dfacs, florence
    from stages.corpus.order import Order

    first = digest(made(corpus, source))
    order = Order(tmp_path, tmp_path, SIZES, COMPUTE, SEED)
    if source == "d3dfacs":
        for actor in reversed(d3dfacs.actors(order)):
            d3dfacs.make_actor(actor, order)
    else:
        for subject in reversed(florence.subjects(order)):
            florence.make_subject(subject, order)
    again = digest(tmp_path)
    lists = {LABEL, "neutral_frames.csv", "nose_tips.csv"}
    assert again == {name: value for name, value in first.items() if name not in lists}


@pytest.mark.parametrize("source", ["d3dfacs", "florence"])
def test_scans_lie_where_the_truth_says(corpus: Path, source: str) -> None:
    """Every sound scan passes through the 51 inner landmarks of its truth, and knows its rest."""
    root = made(corpus, source)
    refs = {ref.item_id: ref for ref in DATASETS[source].discover(root)}
    rows = read_table(corpus / "truth" / source / "scans.parquet").to_pylist()
    checked = 0
    for row in rows:
        ref = refs.get(row["item"])
        if ref is None:  # one-sided scans are left out
            continue
        try:
            scan = DATASETS[source].read(root, ref)
        except ValueError:
            continue
        assert isinstance(scan, ScanRow)
        marks = np.reshape(row["landmarks"], (68, 3))[17:]
        unit_mm = 1000.0 if scan.unit == "m" else 1.0
        away = np.linalg.norm(scan.vertices[None] - marks[:, None], axis=2).min(axis=1)
        assert np.median(away) * unit_mm < 3.0
        if scan.neutral:
            assert not row["expression"]
        checked += 1
    assert checked >= 8


def test_florence_tells_its_ground_truth(corpus: Path) -> None:
    root = made(corpus, "florence")
    truths: dict[str, list[str]] = {}
    for ref in DATASETS["florence"].discover(root):
        if ref.kind == "scan":
            try:
                row = DATASETS["florence"].read(root, ref)
            except ValueError:
                continue
            found = truths.setdefault(ref.subject_id.split("/")[1], [])
            found += [ref.attributes["view"]] * bool(row.attributes["ground_truth"])
    assert truths["subject_01"] == ["frontal1"]
    assert truths["subject_02"] == ["frontal2"]  # frontal1 is absent
    assert truths["subject_05"] == ["frontal2"]  # frontal1 is cut
    assert not list(root.rglob("Model/*/vrml"))
    assert list((root / "images/subject_02/PTZ-Indoor").iterdir()) == []


def test_order_of_the_work_does_not_matter(corpus: Path, tmp_path: Path) -> None:
    from stages.corpus import vggface2
    from stages.corpus.order import Order

    first = made(corpus, "vggface2")
    order = Order(tmp_path, tmp_path, SIZES, COMPUTE, SEED)
    for identity in reversed(vggface2.identities(order)):
        vggface2.make_identity(identity, order)
    again = digest(tmp_path)
    assert again
    assert {name: digest(first)[name] for name in again} == again


def test_300w_lp_points_are_the_model_s_projection(corpus: Path) -> None:
    root = made(corpus, "300w_lp")
    model = three_ddfa.source_model(SIZES.morphable, SEED)
    keys = basel_source.keypoints(model.anchors)
    scale = three_ddfa.expression_coefficient_sigma(29) / model.expression.sigma
    truth = read_table(corpus / "truth" / "300w_lp" / "images.parquet").to_pylist()
    seen = {row["item"]: np.reshape(row["solid_px"], (68, 2)) for row in truth}
    checked = 0
    for path in sorted(root.glob("[AHIL]*/*.mat")):
        content = scipy.io.loadmat(path)
        if "Pose_Para" not in content:
            continue
        alpha, beta = content["Shape_Para"][:, 0], content["Exp_Para"][:, 0].astype(float)
        pose = Pose(*(float(value) for value in content["Pose_Para"][0]))
        head = model.head_vertices(alpha, beta / scale)
        solid = matlab_points(project(model.anchors.flat(head)[keys], pose), 450)
        flipped = path.parent.name.endswith("_Flip")
        name = f"{path.parent.name.removesuffix('_Flip')}/{path.stem}"
        if "pt3d_68" in content:
            np.testing.assert_allclose(content["pt3d_68"][:2].T, solid, atol=0.01)
        else:
            points = scipy.io.loadmat(
                root / "landmarks" / name.split("/")[0] / f"{path.stem}_pts.mat"
            )
            stored = points["pts_3d"]
            expected = mirrored_points(stored, 450) if flipped else stored
            if flipped:
                # a mirrored face is again in the basis; on the midline no vertex is its own image
                gap = np.linalg.norm(expected - solid, axis=1)
                assert np.quantile(gap, 0.8) < 0.01
                assert gap.max() < 3.0
            else:
                np.testing.assert_allclose(expected, solid, atol=1e-3)
        # pictures are in our pixel convention: half a pixel less than MATLAB's
        if not flipped:
            gap = np.linalg.norm(seen[name] + 0.5 - solid, axis=1)
            assert np.median(gap) < 1.0
        checked += 1
    assert checked >= 4 * 2 + 2 * 2 + 2


def test_jaw_follows_the_visible_contour(corpus: Path) -> None:
    root = made(corpus, "300w_lp")
    largest = 0.0
    for path in sorted((root / "landmarks").rglob("*_pts.mat")):
        points = scipy.io.loadmat(path)
        np.testing.assert_allclose(points["pts_2d"][17:], points["pts_3d"][17:], atol=1e-6)
        gap = np.linalg.norm(points["pts_2d"][:17] - points["pts_3d"][:17], axis=1)
        largest = max(largest, float(gap.max()))
    assert largest > 10.0


def test_one_photograph_repeats_its_points_over_the_views(corpus: Path) -> None:
    root = made(corpus, "300w_lp")
    repeated = 0
    for first in sorted(root.glob("[AHIL]*[A-Z]/*_0.mat")):
        second = first.with_name(first.name.replace("_0.mat", "_1.mat"))
        if second.is_file():
            same = np.array_equal(scipy.io.loadmat(first)["pt2d"], scipy.io.loadmat(second)["pt2d"])
            repeated += int(same)
    assert repeated == 1


def test_benchmark_people_are_in_no_training_set(corpus: Path) -> None:
    shapes = {}
    for source in ("now", "lyhm", "vggface2"):
        made(corpus, source)
        rows = read_table(corpus / "truth" / source / "people.parquet").to_pylist()
        shapes[source] = np.array([row["vertices"] for row in rows])
    for source in ("lyhm", "vggface2"):
        gap = np.abs(shapes["now"][:, None] - shapes[source][None]).max(axis=2)
        assert gap.min() > 1e-3  # metres: no two heads alike


def test_now_lists_boxes_and_missing_challenge(corpus: Path) -> None:
    root = made(corpus, "now")
    lines = (root / "imagepathsvalidation.txt").read_text().split()
    assert lines == sorted(lines)
    release = root / "NoW_Dataset" / "final_release_version"
    for line in lines:
        assert (release / "iphone_pictures" / line).is_file()
        assert (release / "detected_face" / line).with_suffix(".npy").is_file()
    per_person: dict[str, set[str]] = {}
    for line in lines:
        person, challenge, _ = line.split("/")
        per_person.setdefault(person, set()).add(challenge)
    assert any("multiview_occlusions" not in found for found in per_person.values())


def test_an_unknown_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a source among"):
        synthesize("nothing", tmp_path / "a", tmp_path / "b", SIZES, COMPUTE, 0)


def test_there_is_a_source_for_every_data_set_and_model() -> None:
    assert set(DATASETS) <= set(SOURCES)
    assert {"flame", "bfm2009", "bfm2017", "3ddfa"} <= set(SOURCES)
