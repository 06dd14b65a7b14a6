"""Converting owners' models: values, units, winding, and clear refusals."""

import hashlib
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from models.face.flame import FlameArrays, LandmarkEmbedding
from models.face.morphable import LinearModel, pncc_code
from stages.convert import load_flame, run
from stages.corpus import bfm2009, bfm2017, three_ddfa
from stages.corpus.files import write
from stages.corpus.flame import (
    Embeddings,
    FlameFiles,
    masks_pickle,
    static_pickle,
    write_release,
)
from stages.corpus.linear_files import LinearFiles
from stages.datasets.flame_files import (
    FlameFileError,
    edition_path,
    outward,
    read_embedding,
    read_static_embedding,
)
from stages.datasets.models import MODEL_SOURCES
from stages.datasets.morphable_files import (
    MorphableFileError,
    indices_of,
    read_bfm2009,
)
from stages.runtime.artifacts import read_safetensors, write_bytes
from stages.runtime.params import ConvertParams
from stages.runtime.unpickle import UnsafePickleError

PARAMS = ConvertParams(texture=True, leading_mode_min_mm=0.01, leading_mode_max_mm=60)


def grid(n: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """A bulged sheet facing +z, 0.2 m tall, counter-clockwise seen from +z."""
    y, x = np.mgrid[0:n, 0:n] / (n - 1) - 0.5
    z = 0.08 * (1 - (2 * x) ** 2 / 2 - (2 * y) ** 2 / 2)
    vertices = np.stack([0.16 * x, 0.2 * y, z], axis=-1).reshape(-1, 3)
    a = (np.arange(n - 1)[:, None] * n + np.arange(n - 1)).ravel()
    faces = np.concatenate([np.stack([a, a + 1, a + n + 1], 1), np.stack([a, a + n + 1, a + n], 1)])
    return vertices, faces


def flame_files(seed: int = 0) -> FlameFiles:
    rng = np.random.default_rng(seed)
    vertices, faces = grid()
    V = len(vertices)
    weights = rng.dirichlet(np.ones(5), V)
    regressor = np.zeros((5, V))
    regressor[np.arange(5), rng.permutation(V)[:5]] = 1
    return FlameFiles(
        v_template=vertices,
        faces=faces,
        shapedirs=rng.normal(size=(V, 3, 400)) * 1e-3,
        posedirs=rng.normal(size=(V, 3, 36)) * 1e-4,
        joint_regressor=regressor,
        weights=weights,
        parents=np.array([-1, 0, 1, 1, 1]),
    )


def embeddings(faces: int, seed: int = 0) -> Embeddings:
    rng = np.random.default_rng(seed)
    return Embeddings(
        static_faces=rng.integers(0, faces, 51),
        static_bary=rng.dirichlet(np.ones(3), 51),
        dynamic_faces=rng.integers(0, faces, (79, 17)),
        dynamic_bary=rng.dirichlet(np.ones(3), (79, 17)),
        full_faces=rng.integers(0, faces, 68),
        full_bary=rng.dirichlet(np.ones(3), 68),
    )


@pytest.fixture
def flame_root(tmp_path: Path) -> Path:
    root = tmp_path / "FLAME"
    generic = flame_files()
    masks = {"face": np.arange(30), "left_eyeball": np.arange(40, 50)}
    rng = np.random.default_rng(4)
    write_release(root, generic, flame_files(1), masks, embeddings(len(generic.faces)), rng)
    return root


def linear(unit_m: float, seed: int = 0, modes: int = 6, expressions: int = 79) -> LinearFiles:
    rng = np.random.default_rng(seed)
    vertices, faces = grid()
    n = 3 * len(vertices)

    def unit_columns(count: int) -> np.ndarray:
        return np.linalg.qr(rng.normal(size=(n, count)))[0]

    scale = np.sqrt(len(vertices)) / unit_m * 1e-3  # one sigma moves a vertex by about a millimetre
    return LinearFiles(
        mean_shape=(vertices / unit_m).ravel(),
        shape_basis=unit_columns(modes),
        shape_sigma=scale * np.linspace(3, 1, modes),
        mean_expression=rng.normal(size=n) * 1e-4 / unit_m,
        expression_basis=unit_columns(expressions),
        expression_sigma=scale * np.linspace(2, 0.5, expressions),
        texture_mean=rng.uniform(0.2, 0.8, n),
        texture_basis=unit_columns(modes),
        texture_sigma=np.linspace(1, 0.2, modes),
        faces=faces,
        keypoints=rng.integers(0, len(vertices), 68),
    )


def normals_z(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = (vertices[faces[:, i]].astype(float) for i in range(3))
    return np.cross(b - a, c - a)[:, 2]


class TestFlame:
    def test_pickles_with_and_without_chumpy(self, flame_root: Path) -> None:
        for name, expected in (("generic", flame_files()), ("female", flame_files(1))):
            model = load_flame(flame_root / f"{name}_model.pkl")
            np.testing.assert_allclose(model.v_template, expected.v_template, atol=1e-7)
            np.testing.assert_allclose(model.shapedirs, expected.shapedirs[..., :300], atol=1e-7)
            np.testing.assert_allclose(model.exprdirs, expected.shapedirs[..., 300:], atol=1e-7)
            np.testing.assert_allclose(model.posedirs, expected.posedirs, atol=1e-8)
            np.testing.assert_allclose(model.joint_regressor, expected.joint_regressor)
            np.testing.assert_array_equal(model.parents, [-1, 0, 1, 1, 1])
            np.testing.assert_array_equal(model.faces, expected.faces)
            assert model.v_template.dtype == np.float32

    def test_converted_folder(self, flame_root: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        (flame_root / "SYNTHETIC.txt").write_text("made by a program\n")
        run(PARAMS, model="flame", raw=flame_root, out=out)
        owner, converted = load_flame(flame_root), FlameArrays.load(out)
        for name in owner.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(owner, name), getattr(converted, name))
        assert load_flame(out).exprdirs.shape[2] == 100
        tensors, _ = read_safetensors(out / "model.safetensors")
        assert set(tensors) == {
            "v_template",
            "faces",
            "shapedirs",
            "exprdirs",
            "posedirs",
            "J_regressor",
            "weights",
            "parents",
        }
        embedding, source = LandmarkEmbedding.load(out), embeddings(len(owner.faces))
        np.testing.assert_array_equal(embedding.static_faces, source.static_faces)
        np.testing.assert_allclose(embedding.dynamic_bary, source.dynamic_bary, atol=1e-6)
        np.testing.assert_array_equal(embedding.full_faces, source.full_faces)
        with np.load(out / "masks.npz") as masks:
            np.testing.assert_array_equal(masks["left_eyeball"], np.arange(40, 50))
            assert masks["face"].dtype == np.int64
        meta = json.loads((out / "meta.json").read_text())
        assert meta["synthetic"] is True
        assert (meta["unit"], meta["unit_m"]) == ("m", 1.0)
        for entry in meta["sources"]:
            content = (flame_root / entry["path"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == entry["sha256"]
        assert len(meta["sources"]) == 4

    def test_conversion_is_byte_identical(self, flame_root: Path, tmp_path: Path) -> None:
        digests = []
        for name in ("a", "b"):
            run(PARAMS, model="flame", raw=flame_root, out=tmp_path / name)
            files = sorted((tmp_path / name).iterdir())
            digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])
        assert digests[0] == digests[1]

    def test_both_static_editions_and_every_form(self, flame_root: Path, tmp_path: Path) -> None:
        source = embeddings(len(flame_files().faces))
        first = read_static_embedding(flame_root / "flame_static_embedding.pkl")
        second = read_static_embedding(flame_root / "flame-fitting/flame_static_embedding.pkl")
        np.testing.assert_allclose(first[1], source.static_bary)
        np.testing.assert_allclose(second[1][14:], source.static_bary[14:])
        assert not np.allclose(second[1][:14], source.static_bary[:14])
        third = read_static_embedding(flame_root / "landmark_embedding.npy")
        np.testing.assert_array_equal(third[0], source.static_faces)
        run(PARAMS, model="flame", raw=flame_root, out=tmp_path / "out")
        fourth = read_static_embedding(tmp_path / "out" / "embeddings.npz")
        np.testing.assert_array_equal(fourth[0], source.static_faces)
        for edition, expected in (("mica", first), ("flame-fitting", second)):
            found = read_static_embedding(edition_path(tmp_path / "out", edition))
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])

    def test_one_edition_is_enough_and_a_foreign_one_is_refused(
        self, flame_root: Path, tmp_path: Path
    ) -> None:
        other = flame_root / "flame-fitting/flame_static_embedding.pkl"
        faces, bary = read_static_embedding(other)
        write_bytes(other, static_pickle(faces + 10**6, bary))
        with pytest.raises(ValueError, match="refers beyond"):
            run(PARAMS, model="flame", raw=flame_root, out=tmp_path / "bad")
        other.unlink()
        run(PARAMS, model="flame", raw=flame_root, out=tmp_path / "out")
        with pytest.raises(FileNotFoundError, match="flame-fitting edition"):
            edition_path(tmp_path / "out", "flame-fitting")

    def test_embedding_from_the_static_and_the_dynamic_file(self, flame_root: Path) -> None:
        whole = read_embedding(flame_root)
        (flame_root / "landmark_embedding.npy").unlink()
        parts = read_embedding(flame_root)
        np.testing.assert_array_equal(parts.dynamic_faces, whole.dynamic_faces)
        np.testing.assert_array_equal(parts.full_faces[:17], whole.dynamic_faces[0])
        np.testing.assert_allclose(parts.full_bary[17:], whole.static_bary)
        (flame_root / "flame_dynamic_embedding.npy").unlink()
        with pytest.raises(FileNotFoundError, match=r"landmark_embedding\.npy, or"):
            read_embedding(flame_root)

    def test_a_contour_that_nobody_gave_is_traced(self, tmp_path: Path) -> None:
        """A sheet with eyes, nose and an outline: its border from the middle below to the eyes."""
        model = flame_files()
        centres = model.v_template[model.faces].mean(axis=1)[:, :2]

        def triangle(x: float, y: float) -> int:
            return int(np.argmin(np.linalg.norm(centres - [x, y], axis=1)))

        static = np.full(51, triangle(0.0, 0.0))
        static[[19, 28]] = triangle(-0.03, 0.05), triangle(0.03, 0.05)
        given = replace(
            embeddings(len(model.faces)), static_faces=static, static_bary=np.full((51, 3), 1 / 3)
        )
        root, out = tmp_path / "FLAME", tmp_path / "out"
        masks = {"face": np.arange(len(model.v_template))}
        write_release(root, model, model, masks, given, np.random.default_rng(0))
        (root / "landmark_embedding.npy").unlink()
        (root / "flame_dynamic_embedding.npy").unlink()
        run(PARAMS, model="flame", raw=root, out=out)
        meta = json.loads((out / "meta.json").read_text())
        assert meta["contour"] == "traced"
        marks = LandmarkEmbedding.load(out)
        np.testing.assert_array_equal(marks.static_faces, static)
        np.testing.assert_array_equal(marks.full_faces[:17], marks.dynamic_faces[0])
        points = marks.contour(model.v_template, model.faces, 0.0)
        low, high = model.v_template.min(axis=0), model.v_template.max(axis=0)
        on_border = np.minimum(
            np.abs(points[:, 1] - low[1]), np.abs(np.abs(points[:, 0]) - high[0])
        )
        assert on_border.max() < 0.003
        assert abs(points[0, 1] - 0.05) < 0.02
        write(root / "FLAME_masks.pkl", masks_pickle({"nose": np.arange(3)}))
        with pytest.raises(ValueError, match="a mask 'face' to trace the contour on"):
            run(PARAMS, model="flame", raw=root, out=out)

    def test_npz_of_a_small_basis(self, shared_data: Path) -> None:
        model = load_flame(shared_data / "open_head" / "flame_like.npz")
        assert model.v_template.shape == (5023, 3)
        assert (model.shapedirs.shape[2], model.exprdirs.shape[2]) == (100, 48)
        assert model.parents.tolist() == [-1, 0, 1, 1, 1]

    def test_real_embedding_lies_on_the_real_template(self, shared_data: Path) -> None:
        embedding = read_embedding(shared_data / "flame_assets")
        template = load_flame(shared_data / "open_head" / "flame_like.npz")
        points = embedding.all68(template.v_template, template.faces)
        outer = np.linalg.norm(points[36] - points[45])
        assert 0.0905 < outer < 0.0925  # 91.5 mm on the published template

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"weights": None}, r"lacks \['weights'\]"),
            ({"v_template": grid()[0] * 1000}, "FLAME is in metres"),
            ({"v_template": grid()[0] * np.nan}, "NaN or infinite|tall"),
            ({"f": grid()[1] + 1}, "do not index"),
            ({"posedirs": np.zeros((3, 3, 9))}, "posedirs"),
            ({"shapedirs": np.zeros(5)}, r"expected \(V, 3, K\)"),
            ({"weights": "text"}, "not numeric"),
        ],
    )
    def test_bad_models(self, tmp_path: Path, change: dict[str, object], reason: str) -> None:
        files = flame_files()
        content: dict[str, object] = {
            "v_template": files.v_template,
            "f": files.faces,
            "shapedirs": files.shapedirs,
            "posedirs": files.posedirs,
            "J_regressor": files.joint_regressor,
            "weights": files.weights,
            "kintree_table": np.array([[2**32 - 1, 0, 1, 1, 1], [0, 1, 2, 3, 4]]),
            **change,
        }
        path = tmp_path / "model.pkl"
        kept = {key: value for key, value in content.items() if value is not None}
        path.write_bytes(pickle.dumps(kept, protocol=2))
        with pytest.raises(FlameFileError, match=reason) as caught:
            load_flame(path)
        assert "model.pkl" in str(caught.value)

    def test_an_executing_pickle_stops_the_conversion(
        self, flame_root: Path, tmp_path: Path
    ) -> None:
        class Evil:
            def __reduce__(self):
                return (os.system, (f"touch {tmp_path / 'executed'}",))

        (flame_root / "generic_model.pkl").write_bytes(pickle.dumps({"f": Evil()}))
        with pytest.raises(UnsafePickleError, match=r"generic_model\.pkl refers to posix\.system"):
            run(PARAMS, model="flame", raw=flame_root, out=tmp_path / "out")
        assert not (tmp_path / "executed").exists()
        assert not (tmp_path / "out").exists()

    def test_a_missing_file_says_what_for_and_where(self, flame_root: Path, tmp_path: Path) -> None:
        (flame_root / "FLAME_masks.pkl").unlink()
        with pytest.raises(
            FileNotFoundError, match=r"(?s)FLAME_masks\.pkl.*flame\.is\.tue\.mpg\.de"
        ):
            run(PARAMS, model="flame", raw=flame_root, out=tmp_path / "out")


def test_outward_keeps_and_turns() -> None:
    vertices, faces = grid()
    np.testing.assert_array_equal(outward(vertices, faces), faces)
    turned = outward(vertices, faces[:, [0, 2, 1]])
    assert (normals_z(vertices, turned) > 0).all()


class TestMorphable:
    def test_bfm2009(self, tmp_path: Path) -> None:
        model = linear(1e-6)
        full = len(model.mean_shape) // 3
        trim = np.sort(np.random.default_rng(2).permutation(full)[:130])
        front = np.arange(0, 130, 2)
        on_trim = (3 * trim[:, None] + np.arange(3)).ravel()
        files = LinearFiles(
            **{
                name: getattr(model, name)
                for name in LinearFiles.__dataclass_fields__
                if "expression" not in name
            },
            mean_expression=model.mean_expression[on_trim],
            expression_basis=model.expression_basis[on_trim],
            expression_sigma=model.expression_sigma,
        )
        root = tmp_path / "raw"
        segments = np.zeros((full, 4), dtype=np.int64)
        bfm2009.write_release(root, files, segments, trim, front)
        stored = scipy.io.loadmat(root / "01_MorphableModel.mat")
        assert (normals_z(model.mean_shape.reshape(-1, 3), stored["tl"] - 1) < 0).all()
        arrays, sources = read_bfm2009(root)
        mean = model.mean_shape.reshape(-1, 3)
        np.testing.assert_allclose(arrays["mean_shape"], mean[trim], rtol=1e-6)
        assert (normals_z(arrays["mean_shape"], arrays["faces"]) > 0).all()
        np.testing.assert_array_equal(arrays["trim_index"], trim)
        np.testing.assert_array_equal(arrays["front_index"], front)
        np.testing.assert_allclose(arrays["shape_sigma"], model.shape_sigma, rtol=1e-6)
        np.testing.assert_allclose(arrays["expression_sigma"], model.expression_sigma, rtol=1e-4)
        basis = model.shape_basis.reshape(-1, 3, 6)[trim]
        np.testing.assert_allclose(arrays["shape_basis"], basis, atol=1e-6)
        expression = files.expression_basis.reshape(130, 3, 79)
        np.testing.assert_allclose(arrays["expression_basis"], expression, atol=1e-6)
        texture = model.texture_mean.reshape(-1, 3)[trim]
        np.testing.assert_allclose(arrays["texture_mean"], texture, rtol=1e-5)
        kept = {tuple(sorted(trim[face])) for face in arrays["faces"]}
        inside = {tuple(sorted(f)) for f in model.faces if np.isin(f, trim).all()}
        assert kept == inside
        assert {"01_MorphableModel.mat", "Exp_Pca.bin", "BFM_exp_idx.mat", "std_exp.txt"} <= {
            path.name for path in sources
        }
        keypoints = np.arange(68) % 65
        path = root / "facemodel_info.mat"
        scipy.io.savemat(path, {"keypoints": keypoints[None] + 1.0})
        again, _ = read_bfm2009(root)
        np.testing.assert_array_equal(again["keypoints"], front[keypoints])

        exp = root / "Exp_Pca.bin"
        exp.write_bytes(exp.read_bytes()[:-4])
        with pytest.raises(ValueError, match=r"Exp_Pca\.bin has .* bytes and announces 79"):
            read_bfm2009(root)

    def test_bfm2009_variances_for_deviations_are_noticed(self, tmp_path: Path) -> None:
        model = linear(1e-6)
        root = tmp_path / "raw"
        trim = np.arange(len(model.mean_shape) // 3)
        segments = np.zeros((len(trim), 4), dtype=np.int64)
        bfm2009.write_release(root, model, segments, trim, trim[:68])
        stored = scipy.io.loadmat(root / "01_MorphableModel.mat")
        stored["shapeEV"] = stored["shapeEV"].astype(np.float64) ** 2
        kept = {name: value for name, value in stored.items() if not name.startswith("__")}
        scipy.io.savemat(root / "01_MorphableModel.mat", kept)
        with pytest.raises(ValueError, match="are these variances, or another unit"):
            run(PARAMS, model="bfm2009", raw=root, out=tmp_path / "out")

    def test_bfm2017(self, tmp_path: Path) -> None:
        model, root, out = linear(1e-3), tmp_path / "raw", tmp_path / "out"
        bfm2017.write_release(root, model)
        run(PARAMS, model="bfm2017", raw=root, out=out)
        loaded = LinearModel.load(out)
        mean = model.mean_shape.reshape(-1, 3)
        np.testing.assert_allclose(loaded.mean_shape, mean, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(loaded.shape_sigma, model.shape_sigma, rtol=1e-5)
        np.testing.assert_allclose(loaded.expression_sigma, model.expression_sigma, rtol=1e-5)
        assert (normals_z(loaded.mean_shape, loaded.faces) > 0).all()
        tensors, _ = read_safetensors(out / "model.safetensors")
        named = tensors["named_landmarks"]
        places = np.flatnonzero(named >= 0)
        np.testing.assert_allclose(mean[named[places]], mean[model.keypoints[places]], atol=1e-3)
        assert len(places) == 11
        assert json.loads((out / "meta.json").read_text())["unit_m"] == 1e-3

    def test_bfm2017_damage(self, tmp_path: Path) -> None:
        (tmp_path / "model2017-1_bfm_nomouth.h5").write_bytes(b"not hdf5")
        with pytest.raises(ValueError, match=r"nomouth\.h5 is not a readable 2017 model"):
            run(PARAMS, model="bfm2017", raw=tmp_path, out=tmp_path / "out")

    def test_3ddfa(self, tmp_path: Path) -> None:
        model, root, out = linear(1e-6, modes=199, expressions=29), tmp_path / "raw", tmp_path / "o"
        trim = np.arange(len(model.mean_shape) // 3)
        segments = np.zeros((len(trim), 4), dtype=np.int64)
        three_ddfa.write_release(root, model, trim, segments)
        run(PARAMS, model="3ddfa", raw=root, out=out)
        loaded = LinearModel.load(out)
        np.testing.assert_array_equal(loaded.keypoints, model.keypoints)
        assert (normals_z(loaded.mean_shape, loaded.faces) > 0).all()
        mean = model.mean_shape.reshape(-1, 3)
        expected = (mean - mean.min(0)) / np.ptp(mean, axis=0)
        with np.load(out / "pncc_code.npz") as stored:
            np.testing.assert_allclose(stored["code"], expected, atol=1e-6)
        alpha, beta = np.full(199, 1e5), np.linspace(-1, 1, 29)
        scaled = three_ddfa.scaled_expressions(model)
        by_hand = (
            model.mean_shape + model.mean_expression + model.shape_basis @ alpha + scaled @ beta
        )
        np.testing.assert_allclose(
            loaded.shape(alpha, beta), by_hand.reshape(-1, 3), rtol=1e-4, atol=1.0
        )
        tensors, _ = read_safetensors(out / "model.safetensors")
        assert "texture_mean" not in tensors

    def test_pncc_code_of_the_real_mean(self, shared_data: Path) -> None:
        folder = shared_data / "real_300wlp"
        mean = np.load(folder / "bfm_u_shp.npy").reshape(-1, 3)
        np.testing.assert_allclose(
            pncc_code(mean).T, np.load(folder / "bfm_pncc_code.npy"), atol=2e-7
        )
        tri = scipy.io.loadmat(folder / "bfm_tri.mat")["tri"].T.astype(np.int64) - 1
        fixed = outward(mean, tri)
        assert np.array_equal(fixed, tri[:, [0, 2, 1]])  # the published triangles are clockwise
        assert normals_z(mean, fixed).sum() > 0

    @pytest.mark.parametrize("kind", sorted(MODEL_SOURCES))
    def test_missing_folders(self, kind: str, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="files are missing"):
            run(PARAMS, model=kind, raw=tmp_path / "nowhere", out=tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert MODEL_SOURCES[kind].validate(tmp_path)

    def test_texture_can_be_left_out(self, tmp_path: Path) -> None:
        bfm2017.write_release(tmp_path / "raw", linear(1e-3))
        plain = PARAMS.model_copy(update={"texture": False})
        run(plain, model="bfm2017", raw=tmp_path / "raw", out=tmp_path / "out")
        tensors, _ = read_safetensors(tmp_path / "out" / "model.safetensors")
        assert not [name for name in tensors if name.startswith("texture")]


def test_real_index_files_agree_with_the_real_keypoints(shared_data: Path) -> None:
    """The published 68 of the frontal set are 3DDFA's 68, which come as coordinate indices."""
    folder = shared_data / "deep3d"
    front = indices_of(folder / "BFM_front_idx.mat", "idx", 53215)
    trim = indices_of(folder / "BFM_exp_idx.mat", "trimIndex", 53490)
    selected = indices_of(folder / "select_vertex_id.mat", "select_id", 53490)
    np.testing.assert_array_equal(trim[front], selected)
    keypoints = front[indices_of(folder / "facemodel_info.mat", "keypoints", len(front), count=68)]
    flat = np.load(shared_data / "real_300wlp" / "bfm_keypoints_sim.npy")
    np.testing.assert_array_equal(keypoints, flat[::3] // 3)
    with pytest.raises(MorphableFileError, match="does not count from 1 to at most 100"):
        indices_of(folder / "BFM_front_idx.mat", "idx", 100)
