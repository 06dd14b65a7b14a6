"""The restricted pickle reader: what it understands, and that nothing it meets is executed."""

import collections
import contextlib
import copyreg
import io
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stages.runtime.unpickle import PickleReadError, UnsafePickleError, read_npy, read_pickle


class Call:
    """Pickles as a call of any function with any arguments."""

    def __init__(self, function, *args, state=None) -> None:
        self.parts = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.parts


@pytest.fixture
def tripwire(tmp_path: Path) -> Path:
    """A file that appears when an attack succeeds."""
    return tmp_path / "executed"


def attacks(tripwire: Path) -> dict[str, bytes]:
    shell = f"touch {tripwire}"
    code = f"open({str(tripwire)!r}, 'w').close()"
    proto2 = b"\x80\x02"
    return {
        "os.system": pickle.dumps(Call(os.system, shell)),
        "posix.system protocol 0": f"cposix\nsystem\n(S'{shell}'\ntR.".encode(),
        "eval": pickle.dumps(Call(eval, code), protocol=2),
        "exec": pickle.dumps(Call(exec, code), protocol=4),
        "__builtin__ eval": f"c__builtin__\neval\n(S{code!r}\ntR.".encode(),
        "getattr": pickle.dumps(Call(getattr, "x", "upper")),
        "open": pickle.dumps(Call(open, str(tripwire), "w")),
        "subprocess": pickle.dumps(Call(subprocess.call, ["touch", str(tripwire)])),
        "nested in a list in a dict": pickle.dumps({"v": [1, [Call(os.system, shell)]]}),
        "as a key": pickle.dumps({(1, Call(os.system, shell)): 1}),
        "inside an object array": pickle.dumps(np.array([Call(os.system, shell)], dtype=object)),
        "INST": f"(S'{shell}'\nios\nsystem\n.".encode(),
        "OBJ": f"(cos\nsystem\nS'{shell}'\no.".encode(),
        "NEWOBJ": proto2 + f"csubprocess\nPopen\n(S'{shell}'\nt\x81.".encode(),
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R.",
        "copyreg reconstructor of a class": pickle.dumps(
            Call(copyreg._reconstructor, Path, object, None), protocol=2
        ),
        "copyreg.add_extension": pickle.dumps(Call(copyreg.add_extension, "os", "system", 77)),
        "extension code": proto2 + b"\x82\x4d(S'x'\ntR.",
        "importlib": pickle.dumps(Call(__import__, "os")),
        "numpy load": b"cnumpy\nload\n(S'x'\ntR.",
        "numpy testing runner": b"cnumpy.testing._private.utils\nrunstring\n(S'x'\n}tR.",
        "torch load": b"ctorch.serialization\nload\n(S'x'\ntR.",
        "a bare global": b"cos\nsystem\n.",
        "state on a list": b"]}b.",
        "state on a global": b"cnumpy\nndarray\n}S'x'\nI1\nsb.",
        "call of a list": b"](S'x'\ntR.",
        "a global handed to set": b"c__builtin__\nset\n(cnumpy\nndarray\ntR.",
        "persistent id": b"Pos.system\n.",
        "type": b"c__builtin__\ntype\n(S'x'\n)}tR.",
    }


@pytest.mark.parametrize("name", sorted(attacks(Path("x"))))
def test_nothing_is_executed(name: str, tripwire: Path, tmp_path: Path) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(attacks(tripwire)[name])
    before = set(sys.modules)
    with pytest.raises(UnsafePickleError, match=r"evil\.pkl"):
        read_pickle(path)
    assert not tripwire.exists()
    assert 77 not in copyreg._inverted_registry  # type: ignore[attr-defined]
    assert not (set(sys.modules) - before) & {"subprocess", "importlib", "numpy.testing"}


def test_the_refusal_names_the_global_and_the_file(tmp_path: Path) -> None:
    path = tmp_path / "generic_model.pkl"
    path.write_bytes(pickle.dumps(Call(os.system, "ls")))
    with pytest.raises(UnsafePickleError, match=r"generic_model\.pkl refers to posix\.system"):
        read_pickle(path)


def test_an_evil_torch_storage_is_refused(tripwire: Path) -> None:
    inner = pickle.dumps(Call(os.system, f"touch {tripwire}"))
    size = struct.pack("<I", len(inner))
    outer = (
        b"\x80\x03ctorch._utils\n_rebuild_tensor_v2\n(ctorch.storage\n_load_from_bytes\n(B"
        + size
        + inner
        + b"tRK\x00(K\x01t(K\x01t\x89NtR."
    )
    with pytest.raises(UnsafePickleError, match="system"):
        read_pickle(outer)
    assert not tripwire.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_plain_containers(protocol: int) -> None:
    value = {
        "a": [1, -(2**70), 2.5, None, True, "text é", (1, (2,))],
        ("k", 3): {1, 2},
        "f": frozenset({"x"}),
        "b": b"\x00\xff",
        "c": 1 + 2j,
        "o": collections.OrderedDict([("z", 1), ("a", 2)]),
        "empty": [[], {}, (), "", b""],
    }
    assert read_pickle(pickle.dumps(value, protocol=protocol)) == value


def test_shared_and_recursive_lists_keep_their_identity() -> None:
    shared: list = [1]
    value = [shared, shared]
    value.append(value)
    out = read_pickle(pickle.dumps(value))
    assert isinstance(out, list)
    assert out[0] is out[1]
    assert out[2] is out


DTYPES = st.one_of(
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?"),
    hnp.boolean_dtypes(),
    hnp.unicode_string_dtypes(min_len=1),
)


@settings(max_examples=80, deadline=None)
@given(
    array=hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, min_side=0)),
    protocol=st.integers(0, 5),
    fortran=st.booleans(),
)
def test_arrays_as_pickle_itself_reads_them(
    array: np.ndarray, protocol: int, fortran: bool
) -> None:
    array = np.asfortranarray(array) if fortran else array
    out = read_pickle(pickle.dumps({"x": array}, protocol=protocol))
    assert isinstance(out, dict)
    np.testing.assert_array_equal(out["x"], array)
    assert out["x"].dtype == array.dtype
    assert out["x"].shape == array.shape


def test_scalars_dtypes_and_object_arrays() -> None:
    ragged = np.empty(2, dtype=object)
    ragged[0], ragged[1] = np.arange(3), {"deep": np.float32(2.5)}
    out = read_pickle(pickle.dumps([np.float32(1.5), np.dtype("<i8"), ragged], protocol=2))
    assert isinstance(out, list)
    assert out[0] == np.float32(1.5)
    assert out[1] == np.dtype("<i8")
    np.testing.assert_array_equal(out[2][0], np.arange(3))
    assert out[2][1] == {"deep": np.float32(2.5)}


@pytest.mark.parametrize("make", [scipy.sparse.csc_matrix, scipy.sparse.csr_matrix])
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("module", ["scipy.sparse._{}", "scipy.sparse.{}"])
def test_sparse_matrices_under_old_and_new_names(make, protocol: int, module: str) -> None:
    dense = np.round(np.random.default_rng(3).random((5, 9))) * 2.5
    kind = make.__name__[:3]
    data = pickle.dumps(make(dense), protocol=protocol)
    new, old = f"scipy.sparse._{kind}".encode(), module.format(kind).encode()
    if protocol < 4:
        data = data.replace(new, old)
    out = read_pickle(data)
    np.testing.assert_array_equal(out.toarray(), dense)  # type: ignore[attr-defined]


def test_coo_matrix() -> None:
    dense = np.diag([1.0, 2.0, 3.0])
    out = read_pickle(pickle.dumps(scipy.sparse.coo_matrix(dense)))
    np.testing.assert_array_equal(out.toarray(), dense)  # type: ignore[attr-defined]


def test_sparse_indices_out_of_range_are_refused() -> None:
    matrix = scipy.sparse.csc_matrix(np.eye(4))
    matrix.indices[1] = 400_000
    with pytest.raises(PickleReadError, match="not a readable pickle"):
        read_pickle(pickle.dumps(matrix))


def test_chumpy_leaves_and_reorderings_without_chumpy() -> None:
    array = pickle.dumps(np.arange(6.0).reshape(2, 3), protocol=2)[2:-1]
    leaf = b"cchumpy.ch\nCh\n)\x81}(S'x'\n" + array + b"S'_dirty_vars'\nc__builtin__\nset\n(]tRub"
    out = read_pickle(b"\x80\x02" + leaf + b".")
    np.testing.assert_array_equal(out, np.arange(6.0).reshape(2, 3))  # type: ignore[arg-type]
    turned = b"\x80\x02cchumpy.reordering\ntranspose\n)\x81}(S'a'\n" + leaf + b"ub."
    np.testing.assert_array_equal(  # type: ignore[call-overload]
        read_pickle(turned), np.arange(6.0).reshape(2, 3).T
    )
    computed = b"\x80\x02cchumpy.ch\nadd\n)\x81}(S'a'\n" + leaf + b"S'b'\n" + leaf + b"ub."
    with pytest.raises(PickleReadError, match="computed, not stored"):
        read_pickle(computed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_torch_tensors_become_arrays(dtype: torch.dtype) -> None:
    tensor = torch.arange(24).reshape(2, 3, 4).to(dtype)
    views = {"whole": tensor, "turned": tensor.transpose(0, 2), "part": tensor[1:, 1]}
    out = read_pickle(pickle.dumps(views, protocol=2))
    assert isinstance(out, dict)
    for name, view in views.items():
        np.testing.assert_array_equal(out[name], view.numpy())
        assert out[name].dtype == view.numpy().dtype


def test_a_tensor_larger_than_its_storage_is_refused() -> None:
    data = pickle.dumps(torch.zeros(300, dtype=torch.uint8), protocol=2)
    stretched = data.replace(b"M,\x01", b"M,\x02")  # the size 300 becomes 556, storage included
    assert stretched != data
    with pytest.raises(PickleReadError):
        read_pickle(stretched)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_pickles_raise_only_our_error(data: st.DataObject) -> None:
    content = {"v": np.arange(5.0), "s": scipy.sparse.csc_matrix(np.eye(2)), "l": [1, "a", (2,)]}
    raw = bytearray(pickle.dumps(content, protocol=data.draw(st.sampled_from([0, 2, 4]))))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    with contextlib.suppress(PickleReadError):
        read_pickle(bytes(raw[:cut] if data.draw(st.booleans()) else raw))


@pytest.mark.parametrize(
    "data",
    [
        b"(" * 100 + b"l" * 100_000,
        b"\x80\x02]r\xff\xff\xff\xffa.",  # memo entry four billion
        b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b"x.",
        b"\x80\x05B" + struct.pack("<I", 2**32 - 1) + b"x.",
        b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
        b"",
        b"\x80\x63.",
    ],
)
def test_bombs_end_in_an_error(data: bytes) -> None:
    with pytest.raises(PickleReadError, match="<bytes>"):
        read_pickle(data)


def test_npy_of_numbers_and_of_objects(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).random((3, 4)).astype(">f4")
    np.save(tmp_path / "n.npy", numbers)
    np.testing.assert_array_equal(read_npy(tmp_path / "n.npy"), numbers)
    np.save(tmp_path / "d.npy", {"left": 3, "box": np.arange(4)}, allow_pickle=True)
    assert read_npy(tmp_path / "d.npy")["left"] == 3
    several = np.array([{"a": 1}, None], dtype=object)
    np.save(tmp_path / "o.npy", several, allow_pickle=True)
    assert read_npy(tmp_path / "o.npy").tolist() == [{"a": 1}, None]


def test_npy_written_by_python_2(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': True, 'shape': (3L, 2L), }".ljust(117) + b"\n"
    path = tmp_path / "old.npy"
    values = np.arange(6, dtype="<f4")
    path.write_bytes(
        b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + values.tobytes()
    )
    np.testing.assert_array_equal(read_npy(path), values.reshape(2, 3).T)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_npy_raises_only_our_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    stream = io.BytesIO()
    np.save(stream, np.array({"left": 1.0, "a": np.arange(3)}, dtype=object), allow_pickle=True)
    raw = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("n") / "a.npy"
    path.write_bytes(raw)
    with contextlib.suppress(PickleReadError):
        read_npy(path)


def test_npy_attacks_and_damage(tmp_path: Path, tripwire: Path) -> None:
    evil = tmp_path / "evil.npy"
    np.save(evil, np.array(Call(os.system, f"touch {tripwire}"), dtype=object), allow_pickle=True)
    with pytest.raises(UnsafePickleError, match=r"evil\.npy refers to posix\.system"):
        read_npy(evil)
    assert not tripwire.exists()
    not_npy = tmp_path / "a.npy"
    not_npy.write_bytes(b"hello")
    with pytest.raises(PickleReadError, match="not an npy file"):
        read_npy(not_npy)
    stream = io.BytesIO()
    np.save(stream, np.arange(100))
    not_npy.write_bytes(stream.getvalue()[:200])
    with pytest.raises(PickleReadError, match=r"a\.npy"):
        read_npy(not_npy)


def test_real_flame_files(shared_data: Path) -> None:
    folder = shared_data / "flame_assets"
    masks = read_pickle(folder / "FLAME_masks.pkl")
    assert isinstance(masks, dict)
    assert {name: len(ids) for name, ids in masks.items()} == {
        "face": 1787,
        "scalp": 489,
        "forehead": 133,
        "eye_region": 751,
        "left_eye_region": 287,
        "right_eye_region": 287,
        "left_eyeball": 546,
        "right_eyeball": 546,
        "nose": 379,
        "lips": 254,
        "left_ear": 588,
        "right_ear": 588,
        "neck": 253,
        "boundary": 114,
    }
    np.testing.assert_array_equal(masks["left_eyeball"], np.arange(3931, 4477))

    marks = read_npy(folder / "landmark_embedding.npy")
    assert marks["dynamic_lmk_faces_idx"].shape == (79, 17)
    assert marks["dynamic_lmk_bary_coords"].shape == (79, 17, 3)
    np.testing.assert_allclose(marks["dynamic_lmk_bary_coords"].sum(-1), 1, atol=1e-5)

    ringnet = read_pickle(folder / "flame_static_embedding.pkl")
    fitting = read_pickle(shared_data / "real_scan" / "flame_static_embedding.pkl")
    assert isinstance(ringnet, dict)
    assert isinstance(fitting, dict)
    np.testing.assert_array_equal(ringnet["lmk_face_idx"], marks["static_lmk_faces_idx"])
    differ = np.flatnonzero(ringnet["lmk_face_idx"] != fitting["lmk_face_idx"])
    assert set(differ) <= set(range(14))
    assert len(differ)

    moving = read_npy(folder / "flame_dynamic_embedding.npy")
    assert len(moving["lmk_face_idx"]) == 79
    assert all(row.shape == (17, 3) for row in moving["lmk_b_coords"])


@pytest.mark.parametrize(("name", "subjects"), [("LYHM", 1211), ("STIRLING", 96)])
def test_real_image_lists(shared_data: Path, name: str, subjects: int) -> None:
    listing = read_npy(shared_data / "flame_assets" / f"image_paths_{name}.npy")
    assert len(listing) == subjects
    images, parameters = next(iter(listing.values()))
    assert all(isinstance(image, str) for image in images)
    assert parameters.endswith(".npz")
