"""PNCC maps: projection, slow twin, records, and real samples where they are beside us."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import scipy.io
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from models.face.morphable import LinearModel, pncc_code
from models.rendering import pncc_codec
from models.rendering.pncc import (
    BATCH,
    Crop,
    PnccMaps,
    PnccRenderer,
    Sample,
    Window,
    project_300w_lp,
    render,
    rotation_300w_lp,
)

UNIT_M = 1e-6


def face_like(seed=0, side=24, modes=5, expressions=3):
    """A bulging sheet in micrometres with smooth directions."""
    rng = np.random.default_rng(seed)
    u, v = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    mean = np.stack([80e3 * u, 100e3 * v, 90e3 * (1 - 0.5 * (u**2 + v**2))], -1).reshape(-1, 3)

    def directions(count, size):
        waves = rng.uniform(0.5, 2, (2, count))
        field = np.sin(u[..., None] * waves[0] + v[..., None] * waves[1]).reshape(-1, 1, count)
        return (size * field * rng.normal(size=(1, 3, count))).astype(np.float32)

    corner = (np.arange(side - 1)[:, None] * side + np.arange(side - 1)).reshape(-1)
    faces = np.concatenate(
        [
            np.stack([corner, corner + 1, corner + side], 1),
            np.stack([corner + side, corner + 1, corner + side + 1], 1),
        ]
    )
    return LinearModel(
        mean_shape=mean.astype(np.float32),
        shape_basis=directions(modes, 1e-2),
        shape_sigma=np.full(modes, 3e5, np.float32),
        mean_expression=np.full_like(mean, 500.0, dtype=np.float32),
        expression_basis=directions(expressions, 1e3),
        expression_sigma=np.ones(expressions, np.float32),
        faces=faces,
        keypoints=np.arange(68),
    )


def samples(count, seed=1, size=60):
    rng = np.random.default_rng(seed)
    return [
        Sample(
            shape=rng.normal(size=5) * 2e5,
            expression=rng.normal(size=3),
            pose=np.array([*rng.uniform(-0.5, 0.5, 3), size / 2, size / 2, 0, 2.2e-4]),
            height=size,
            width=size + 7,
        )
        for _ in range(count)
    ]


def test_rotation_is_the_documented_product():
    pitch, yaw, roll = 0.3, -0.7, 0.2
    (cx, cy, cz), (sx, sy, sz) = np.cos([pitch, yaw, roll]), np.sin([pitch, yaw, roll])
    expected = (
        np.array([[1, 0, 0], [0, cx, sx], [0, -sx, cx]])
        @ np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
        @ np.array([[cz, sz, 0], [-sz, cz, 0], [0, 0, 1]])
    )
    pose = np.array([pitch, yaw, roll, 0, 0, 0, 1])
    np.testing.assert_allclose(rotation_300w_lp(pose), expected, atol=1e-12)
    assert np.linalg.det(rotation_300w_lp(pose)) == pytest.approx(1)


def test_projection_turns_matlab_pixels_into_ours():
    """MATLAB's pixel (1, 1) is our (0.5, 0.5), the centre of the first pixel."""
    pose = np.array([0, 0, 0, 1.0, 450.0, 0, 1e-3])
    np.testing.assert_allclose(project_300w_lp(np.zeros((1, 3)), pose, 450), [[0.5, 0.5]])
    moved = project_300w_lp(np.array([[2000.0, 3000.0, 0]]), pose, 450)
    np.testing.assert_allclose(moved, [[2.5, -2.5]])


def test_maps_meet_each_vertex_where_it_projects():
    model = face_like()
    sample = samples(1, size=400)[0]
    sample = Sample(sample.shape, sample.expression, sample.pose * [1, 1, 1, 1, 1, 1, 6], 400, 407)
    maps = render(model, UNIT_M, [sample])[0]
    shape_mm = 1e-3 * model.shape(sample.shape, sample.expression)
    pixels = project_300w_lp(model.shape(sample.shape, sample.expression), sample.pose, 400)
    observed = maps.pncc_mm + maps.offset_mm
    errors = []
    for vertex, (x, y) in enumerate(pixels):
        row, column = int(y), int(x)
        if 2 <= row < 398 and 2 <= column < 405 and maps.mask[row, column]:
            errors.append(np.linalg.norm(observed[row, column] - shape_mm[vertex]))
    assert len(errors) > 200
    assert np.median(errors) < 1.0  # a pixel is 0.76 mm


def test_maps_equal_a_slow_ray_through_every_triangle():
    model = face_like(side=9)
    sample = samples(1, size=26)[0]
    pose = sample.pose.copy()
    pose[6] = 1e-4
    sample = Sample(sample.shape, sample.expression, pose, 26, 30)
    maps = render(model, UNIT_M, [sample])[0]
    shape = model.shape(sample.shape, sample.expression)
    pixels = project_300w_lp(shape, pose, 26)
    nearness = (shape @ rotation_300w_lp(pose).T)[:, 2]
    mean_mm, shape_mm = 1e-3 * model.mean, 1e-3 * shape
    seen = 0
    for row in range(26):
        for column in range(30):
            best = None
            for corners in model.faces:
                matrix = np.vstack([pixels[corners].T, np.ones(3)])
                if abs(np.linalg.det(matrix)) < 1e-12:
                    continue
                weights = np.linalg.solve(matrix, [column + 0.5, row + 0.5, 1.0])
                if (weights >= 0).all():
                    depth = weights @ nearness[corners]
                    if best is None or depth > best[0]:
                        best = depth, weights, corners
            assert maps.mask[row, column] == (best is not None)
            if best is not None:
                _, weights, corners = best
                seen += 1
                np.testing.assert_allclose(
                    maps.pncc_mm[row, column], weights @ mean_mm[corners], atol=2e-3
                )
                np.testing.assert_allclose(
                    maps.offset_mm[row, column],
                    weights @ (shape_mm - mean_mm)[corners],
                    atol=2e-3,
                )
            else:
                assert (maps.pncc_mm[row, column] == 0).all()
    assert seen > 50


def test_a_sample_does_not_depend_on_its_company():
    renderer = PnccRenderer(face_like(), UNIT_M)
    several = samples(BATCH + 3)
    together = renderer.offsets_mm(several)
    for index in (0, 5, BATCH, BATCH + 2):
        np.testing.assert_array_equal(together[index], renderer.offsets_mm([several[index]])[0])


def test_photographs_of_several_sizes_are_drawn_as_each_alone():
    renderer = PnccRenderer(face_like(), UNIT_M)
    several = [replace(samples(1)[0], width=width) for width in (60, 71)]
    for sample, maps in zip(several, renderer.render(several), strict=True):
        alone = renderer.render([sample])[0]
        for name in ("pncc_mm", "offset_mm", "mask"):
            np.testing.assert_array_equal(getattr(maps, name), getattr(alone, name))


def test_window_draws_the_same_surface_enlarged():
    renderer = PnccRenderer(face_like(), UNIT_M)
    sample = samples(1)[0]
    whole = renderer.render([sample])[0]
    inset = renderer.render([sample], [Window(left=10.0, top=8.0, side=40.0, size=120)])[0]
    centres = inset.pncc_mm[1::3, 1::3]  # every third row and column falls on a pixel centre
    both = inset.mask[1::3, 1::3] & whole.mask[8:48, 10:50]
    assert (inset.mask[1::3, 1::3] != whole.mask[8:48, 10:50]).mean() < 0.01
    np.testing.assert_allclose(centres[both], whole.pncc_mm[8:48, 10:50][both], atol=0.02)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_turned_window_turns_the_picture_and_not_its_values(quarters: int):
    renderer = PnccRenderer(face_like(), UNIT_M)
    sample = samples(1)[0]
    window = Window(left=10.0, top=8.0, side=40.0, size=96)
    turned = replace(window, turn_rad=quarters * np.pi / 2)
    upright, askew = renderer.render([sample, sample], [window, turned])
    mask = np.rot90(upright.mask, -quarters)  # clockwise as seen
    assert (askew.mask != mask).mean() < 0.01
    both = askew.mask & mask
    expected = np.rot90(upright.pncc_mm, -quarters)
    np.testing.assert_allclose(askew.pncc_mm[both], expected[both], atol=0.02)


def test_code_spans_the_unit_cube():
    model = face_like()
    code = pncc_code(model.mean_shape)
    np.testing.assert_allclose(code.min(0), 0)
    np.testing.assert_allclose(code.max(0), 1)
    colours, mask = PnccRenderer(model, UNIT_M).colours(samples(1)[0])
    assert colours[mask].min() >= 0
    assert colours[mask].max() <= 1 + 1e-6


def test_wrong_samples_are_refused():
    renderer = PnccRenderer(face_like(), UNIT_M)
    sample = samples(1)[0]
    with pytest.raises(ValueError, match="identity directions"):
        renderer.render([Sample(np.zeros(199), sample.expression, sample.pose, 60, 60)])
    with pytest.raises(ValueError, match="one window per sample"):
        renderer.render([sample], [])


def random_maps(seed, height=31, width=45, fill=0.5):
    rng = np.random.default_rng(seed)
    rough = cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), 3)
    mask = rough > np.quantile(rough, 1 - fill) if fill else np.zeros((height, width), bool)
    lengths = rng.uniform(-80, 150, (height, width, 6)).astype(np.float32)
    smooth = cv2.GaussianBlur(lengths, (0, 0), 2)
    smooth[~mask] = 0
    return PnccMaps(smooth[..., :3], smooth[..., 3:], mask)


ORIGIN = (-100.0,) * 6


def slow_payload(codes, mask):
    """Bits, low bytes and high bytes of (h, w, 6) codes, pixel by pixel as the format is told."""
    low, high = [], []
    for plane in range(6):
        last = 0
        for row, column in zip(*np.nonzero(mask), strict=True):
            value = int(codes[row, column, plane])
            up = row > 0 and mask[row - 1, column]
            if up and column > 0 and mask[row, column - 1] and mask[row - 1, column - 1]:
                above = codes[row - 1, column - 1 : column + 1, plane].astype(int)
                expected = int(codes[row, column - 1, plane]) + above[1] - above[0]
            else:
                expected = int(codes[row - 1, column, plane]) if up else last
            difference = (value - expected) % 65536
            signed = difference - 65536 if difference >= 32768 else difference
            folded = 2 * signed if signed >= 0 else -2 * signed - 1
            low.append(folded % 256)
            high.append(folded // 256)
            last = value
    return np.packbits(mask, axis=1).tobytes() + bytes(low) + bytes(high)


def codes_of(maps):
    lengths = np.concatenate([maps.pncc_mm, maps.offset_mm], axis=2).astype(np.float64)
    return np.rint((lengths - ORIGIN) / pncc_codec.STEP_MM)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.02, 0.5, 1.0]))
def test_record_holds_what_a_slow_twin_writes_and_lengths_within_half_a_step(seed, fill):
    maps = random_maps(seed, fill=fill)
    record = pncc_codec.encode(maps, ORIGIN)
    rows, columns = np.flatnonzero(maps.mask.any(1)), np.flatnonzero(maps.mask.any(0))
    if rows.size:
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        frame = record[record.index(zstandard.FRAME_HEADER) :]
        payload = zstandard.ZstdDecompressor().decompress(frame)
        assert payload == slow_payload(codes_of(maps)[box], maps.mask[box])
    decoded = pncc_codec.decode(record)
    np.testing.assert_array_equal(decoded.mask, maps.mask)
    np.testing.assert_array_equal(codes_of(decoded)[maps.mask], codes_of(maps)[maps.mask])
    for name in ("pncc_mm", "offset_mm"):
        error = getattr(decoded, name).astype(np.float64) - getattr(maps, name)
        assert np.abs(error).max() <= pncc_codec.STEP_MM / 2  # not one rounding more
        assert (getattr(decoded, name)[~maps.mask] == 0).all()
    assert pncc_codec.encode(decoded, ORIGIN) == record


def test_record_survives_the_wildest_codes():
    rng = np.random.default_rng(5)
    mask = rng.uniform(size=(17, 9)) < 0.7
    codes = np.where(mask[..., None], rng.integers(0, 65536, (17, 9, 6)), 0)
    lengths = np.where(mask[..., None], ORIGIN + codes / 256.0, 0).astype(np.float32)
    crop = Crop(lengths[mask], mask, 2, 3, 40, 50)
    again = pncc_codec.decode(pncc_codec.encode_crop(crop, ORIGIN).data)
    both = np.concatenate([again.pncc_mm, again.offset_mm], axis=2)[2:19, 3:12]
    np.testing.assert_array_equal(both, lengths)


def test_smooth_maps_become_small_records():
    maps = render(face_like(), UNIT_M, samples(1, size=200))[0]
    record = pncc_codec.encode(maps, ORIGIN)
    assert len(record) < 0.6 * 12 * maps.mask.sum()


def test_damaged_records_and_impossible_lengths_are_refused():
    maps = random_maps(3)
    record = pncc_codec.encode(maps, ORIGIN)
    with pytest.raises(ValueError, match="begins with"):
        pncc_codec.decode(record[5:])
    with pytest.raises(ValueError, match="damaged"):
        pncc_codec.decode(record[:-7])
    far = PnccMaps(maps.pncc_mm + np.where(maps.mask, 500, 0)[..., None], maps.offset_mm, maps.mask)
    with pytest.raises(ValueError, match="another model"):
        pncc_codec.encode(far, ORIGIN)
    hole = maps.pncc_mm.copy()
    hole[maps.mask] = np.nan
    with pytest.raises(ValueError, match="another model"):
        pncc_codec.encode(PnccMaps(hole, maps.offset_mm, maps.mask), ORIGIN)
    with pytest.raises(ValueError, match="unit"):
        pncc_codec.origin_of(np.array([[0, 0, 0], [1000.0, 0, 0]]))


REAL = ("image00050", "image00251", "image00516", "image02420", "image04331")


@pytest.fixture(scope="module")
def real(shared_data):
    return shared_data / "real_300wlp"


def real_errors(real, name):
    """Our projection of the truncated model minus the published points, px."""
    with np.load(real / "bfm_68_landmarks.npz") as stored:
        base, shapes, expressions = (
            stored[key].astype(np.float64) for key in ("u_base", "w_shp_base", "w_exp_base")
        )
    sample = scipy.io.loadmat(real / f"{name}.mat")
    alpha = sample["Shape_Para"].ravel()[:40].astype(np.float64)
    beta = sample["Exp_Para"].ravel()[:10].astype(np.float64)
    points = (base + shapes @ alpha + expressions @ beta).reshape(-1, 3)
    published = sample["pt3d_68"][:2].T - 0.5  # MATLAB's 1-based pixels
    return project_300w_lp(points, sample["Pose_Para"][0].astype(np.float64), 450) - published


def test_real_samples_are_met_without_bias(real):
    errors = {name: real_errors(real, name) for name in REAL}
    lengths = {name: np.linalg.norm(error, axis=1).mean() for name, error in errors.items()}
    assert np.mean(list(lengths.values())) < 1.2
    bias = np.mean([error.mean(axis=0) for error in errors.values()], axis=0)
    assert (np.abs(bias) < 0.2).all()
    assert lengths["image00516"] < 0.3


def test_real_code_is_the_min_max_of_the_mean_shape_alone(real):
    mean = np.load(real / "bfm_u_shp.npy").reshape(-1, 3)
    published = np.load(real / "bfm_pncc_code.npy").T
    np.testing.assert_allclose(pncc_code(mean), published, atol=1e-6)
    expression = np.load(real / "bfm_u_exp.npy").reshape(-1, 3)
    assert np.abs(pncc_code(mean + expression) - published).max() > 1e-3


def test_crops_hold_what_whole_pictures_do():
    renderer = PnccRenderer(face_like(), UNIT_M)
    several = samples(3)
    origin = pncc_codec.origin_of(renderer.mean_mm)
    for crop, maps in zip(renderer.crops(several), renderer.render(several), strict=True):
        record = pncc_codec.encode_crop(crop, origin)
        assert record.data == pncc_codec.encode(maps, origin)
        top, left, rows, columns = record.box
        assert maps.mask[top : top + rows, left : left + columns].sum() == maps.mask.sum()


def test_pictures_are_drawn_again_on_memory_that_nobody_holds():
    renderer = PnccRenderer(face_like(), UNIT_M)
    several = samples(3)
    kept = renderer.render(several)
    expected = [maps.pncc_mm.copy() for maps in kept]
    mask = kept[0].mask
    others = renderer.render(several[::-1])
    for maps, pncc_mm in zip(kept, expected, strict=True):
        np.testing.assert_array_equal(maps.pncc_mm, pncc_mm)  # held: not drawn over
    assert not np.shares_memory(kept[0].pncc_mm, others[0].pncc_mm)
    for maps in kept:
        maps.pncc_mm[...] = np.nan
    place = kept[0].pncc_mm.ctypes.data
    del kept, maps
    again = renderer.render(several)
    assert again[0].pncc_mm.ctypes.data == place
    for maps, pncc_mm in zip(again, expected, strict=True):
        np.testing.assert_array_equal(maps.pncc_mm, pncc_mm)
    assert (again[0].offset_mm[~mask] == 0).all()


def test_a_crop_that_leaves_its_picture_is_refused():
    record = bytearray(pncc_codec.encode(random_maps(3), ORIGIN))
    record[4:6] = (5).to_bytes(2, "little")  # the picture's height
    with pytest.raises(ValueError, match="leaves its picture"):
        pncc_codec.decode(bytes(record))


def test_real_mesh_equals_the_general_rasteriser(real):
    """Full topology: coverage identical, other triangles at most in 1e-4 of the pixels."""
    from models.rendering.cameras import orthographic_clip
    from models.rendering.pncc import camera_300w_lp
    from models.rendering.rasterize import rasterize
    from stages.render_sample import load_sample_model

    loaded = load_sample_model(real)
    renderer = PnccRenderer(loaded.model, loaded.unit_m)
    for name in REAL:
        pose = scipy.io.loadmat(real / f"{name}.mat")["Pose_Para"][0].astype(np.float64)
        sample = Sample(np.zeros(0), np.zeros(0), pose, 450, 450)
        maps = renderer.render([sample])[0]
        scale, x, y = (float(part) for part in camera_300w_lp(pose, 450))
        turned = renderer.mean_mm.astype(np.float64) @ rotation_300w_lp(pose).T
        clip = orthographic_clip(turned[None], scale / renderer.to_mm, x, y, 450, 450)
        ids, bary, _ = (np.asarray(part)[0] for part in rasterize(clip, renderer.faces, 450, 450))
        np.testing.assert_array_equal(maps.mask, ids >= 0)
        expected = (bary[..., None] * renderer.mean_mm[renderer.faces[ids]]).sum(2)
        gaps = np.abs(maps.pncc_mm - expected)[maps.mask].max(axis=1)
        assert (gaps > 2e-3).mean() <= 1e-4
        assert maps.mask.sum() > 20_000
