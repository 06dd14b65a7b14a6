"""The emitted pickles are what old Python, chumpy and torch wrote."""

import io
import pickletools
import warnings
from pathlib import Path

import numpy as np
import pytest

from stages.corpus.old_pickle import (
    Call,
    Global,
    TorchTensor,
    chumpy,
    csc_matrix,
    dumps,
    npy_object,
)
from stages.runtime.unpickle import UnsafePickleError, read_npy, read_pickle


def opcodes(data: bytes) -> list[str]:
    return [code.name for code, _, _ in pickletools.genops(io.BytesIO(data))]


@pytest.mark.parametrize("protocol", [0, 2])
def test_plain_values_survive(protocol: int) -> None:
    value = {
        "none": None,
        "flags": [True, False],
        "numbers": [0, 255, 256, 65536, -3, 2**40, -(2**40), 1.25],
        "text": "naïve 'quoted' \\ \n\x01",
        "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "long": "x" * 300,
        "empty": [{}, []],
    }
    assert read_pickle(dumps(value, protocol=protocol)) == value


@pytest.mark.parametrize("protocol", [0, 2, 3])
@pytest.mark.parametrize("dtype", ["f8", "f4", "i8", "u4", "i4", "u1"])
def test_arrays_survive(protocol: int, dtype: str) -> None:
    rng = np.random.default_rng(3)
    value = {
        "plain": rng.integers(0, 100, (4, 3)).astype(dtype),
        "fortran": np.asfortranarray(rng.integers(0, 100, (4, 3)).astype(dtype)),
        "vector": np.arange(7).astype(dtype),
    }
    python = 3 if protocol == 3 else 2
    read = read_pickle(dumps(value, protocol=protocol, python=python))
    assert isinstance(read, dict)
    for name, array in value.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


def test_python_2_strings_are_byte_strings() -> None:
    codes = opcodes(dumps({"key": "value"}, protocol=2, python=2))
    assert "SHORT_BINSTRING" in codes
    assert "BINUNICODE" not in codes
    assert "STRING" in opcodes(dumps({"key": "value"}, protocol=0))


def test_no_opcode_is_newer_than_the_protocol() -> None:
    two = 2.0 * np.eye(3)  # pickletools reads only ASCII strings: 2.0 has no byte above 127
    values = {"a": two, "c": chumpy(two), "s": csc_matrix(two), "t": (1, 2, 3)}
    for protocol, python in ((0, 2), (2, 2), (3, 3)):
        data = dumps(values, protocol=protocol, python=python)
        newest = max(code.proto for code, _, _ in pickletools.genops(io.BytesIO(data)))
        assert newest <= protocol


def test_chumpy_class_is_named_and_holds_the_array() -> None:
    array = np.random.default_rng(0).normal(size=(5, 3))
    data = dumps({"v": chumpy(array)})
    assert b"cchumpy.ch\nCh\n" in data
    read = read_pickle(data)
    assert isinstance(read, dict)
    np.testing.assert_array_equal(read["v"], array)


def test_sparse_matrix_survives() -> None:
    rng = np.random.default_rng(1)
    dense = rng.normal(size=(5, 40)) * (rng.random((5, 40)) < 0.2)
    data = dumps(csc_matrix(dense))
    assert b"cscipy.sparse.csc\ncsc_matrix\n" in data
    np.testing.assert_array_equal(read_pickle(data).toarray(), dense)


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.float64])
def test_torch_tensor_loads_in_torch(dtype: type) -> None:
    torch = pytest.importorskip("torch")
    from stages.corpus.old_pickle import _storage_bytes

    values = np.arange(24).astype(dtype).reshape(2, 3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch: typed storages are an old form
        storage = torch.load(io.BytesIO(_storage_bytes(values)), weights_only=True)
        np.testing.assert_array_equal(np.array(storage.tolist()), values.ravel())


def test_object_npy_matches_numpy_s_header(tmp_path: Path) -> None:
    path = tmp_path / "embedding.npy"
    tensor = np.arange(6).reshape(2, 3)
    path.write_bytes(npy_object({"a": TorchTensor(tensor), "b": np.float64(2.5)}, 3, 3))
    with path.open("rb") as file:
        assert np.lib.format.read_magic(file) == (1, 0)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    assert (shape, fortran, dtype) == ((), False, np.dtype(object))
    read = read_npy(path)
    np.testing.assert_array_equal(read["a"], tensor)
    assert read["b"] == 2.5


def test_same_opcodes_as_a_real_mask_file(shared_data: Path) -> None:
    real = (shared_data / "flame_assets" / "flame_static_embedding.pkl").read_bytes()
    read = read_pickle(real)
    assert isinstance(read, dict)
    ours = dumps(read, protocol=0)
    assert {line[:1] for line in ours.split(b"\n")} <= {line[:1] for line in real.split(b"\n")}
    assert ours[: ours.index(b"lmk_")] == real[: real.index(b"lmk_")]


def test_a_call_to_anything_else_is_refused_by_our_reader() -> None:
    data = dumps(Call(Global("os", "getcwd"), ()))
    with pytest.raises(UnsafePickleError, match=r"os\.getcwd"):
        read_pickle(data)


def test_unknown_values_and_protocols_are_refused() -> None:
    with pytest.raises(TypeError, match="old formats"):
        dumps({"a": object()})
    with pytest.raises(ValueError, match="protocol 0, 2 or 3"):
        dumps({}, protocol=5)
