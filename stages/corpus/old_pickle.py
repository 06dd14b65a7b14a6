"""Emit the pickles that face-model owners distribute, opcode by opcode.

The project never pickles its own artefacts. The embedded corpus, however, must hold files exactly
like the owners': written by Python 2 (protocols 0 and 2, byte strings), holding ``chumpy`` objects,
old ``scipy.sparse`` classes and ``torch`` tensors. Those classes are named here, not imported, so
the writer runs without chumpy or torch, executes nothing and gives the same bytes everywhere.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Shaped

TORCH_MAGIC = 0x1950A86A20F9469CFC6C
TORCH_PROTOCOL = 1001
_TORCH_STORAGE = {"<i8": "LongStorage", "<f4": "FloatStorage", "<f8": "DoubleStorage"}


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function named by module, looked up by the reader."""

    module: str
    name: str


@dataclass(frozen=True, slots=True)
class Call:
    """``function(*arguments)`` with an optional state given to the result."""

    function: Global
    arguments: tuple[Any, ...]
    state: Any = None


@dataclass(frozen=True, slots=True)
class Instance:
    """An object of a class made without arguments, then given its ``__dict__``."""

    cls: Global
    state: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TorchTensor:
    """An array that the reader gets as a ``torch`` tensor (legacy storage serialisation)."""

    values: Shaped[np.ndarray, "..."]


@dataclass(frozen=True, slots=True)
class _Persistent:
    """A persistent id, as torch uses for storages."""

    key: tuple[Any, ...]


def chumpy(values: Shaped[np.ndarray, "..."]) -> Instance:
    """Return ``values`` wrapped like a pickled ``chumpy.ch.Ch`` array."""
    state: dict[str, Any] = {
        "_dirty_vars": Call(Global("__builtin__", "set"), ([],)),
        "_itr": None,
        "_make_dense": False,
        "_make_sparse": False,
        "x": values,
    }
    return Instance(Global("chumpy.ch", "Ch"), state)


def csc_matrix(dense: Shaped[np.ndarray, "rows cols"]) -> Instance:
    """Return a dense matrix as a pickled ``scipy.sparse.csc.csc_matrix`` of the Python 2 era."""
    columns, rows = np.nonzero(dense.T)
    pointers = np.zeros(dense.shape[1] + 1, dtype=np.int32)
    np.cumsum(np.bincount(columns, minlength=dense.shape[1]), out=pointers[1:])
    state: dict[str, Any] = {
        "_shape": (int(dense.shape[0]), int(dense.shape[1])),
        "data": np.ascontiguousarray(dense.T[columns, rows], dtype=np.float64),
        "format": "csc",
        "indices": rows.astype(np.int32),
        "indptr": pointers,
        "maxprint": 50,
    }
    return Instance(Global("scipy.sparse.csc", "csc_matrix"), state)


class _Emitter:
    """One pickle stream. ``python`` says how ``str`` and ``bytes`` are stored."""

    def __init__(self, protocol: int, python: int) -> None:
        if protocol not in (0, 2, 3) or python not in (2, 3):
            raise ValueError(f"expected protocol 0, 2 or 3 of Python 2 or 3, got {protocol}")
        self.protocol = protocol
        self.python = python
        self.parts: list[bytes] = [] if protocol == 0 else [bytes([0x80, protocol])]
        self.memo: dict[Any, int] = {}
        self.count = 0

    def dump(self, value: Any) -> bytes:  # noqa: ANN401 - any picklable value
        self.emit(value)
        self.parts.append(b".")
        return b"".join(self.parts)

    def put(self, key: Any = None) -> None:  # noqa: ANN401 - any hashable
        """Memoise the object on top of the stack, as the original pickler does."""
        if key is not None:
            self.memo[key] = self.count
        number = self.count
        self.count += 1
        if self.protocol == 0:
            self.parts.append(b"p%d\n" % number)
        elif number < 256:
            self.parts.append(b"q" + bytes([number]))
        else:
            self.parts.append(b"r" + struct.pack("<I", number))

    def get(self, key: Any) -> bool:  # noqa: ANN401 - any hashable
        """Refer to a memoised object; False when there is none."""
        number = self.memo.get(key)
        if number is None:
            return False
        if self.protocol == 0:
            self.parts.append(b"g%d\n" % number)
        elif number < 256:
            self.parts.append(b"h" + bytes([number]))
        else:
            self.parts.append(b"j" + struct.pack("<I", number))
        return True

    def emit(self, value: Any) -> None:  # noqa: ANN401 - any picklable value
        match value:
            case None:
                self.parts.append(b"N")
            case bool():
                self.boolean(value)
            case int():
                self.integer(value)
            case float() if not isinstance(value, np.floating):
                text = b"F" + repr(value).encode() + b"\n"
                self.parts.append(text if self.protocol == 0 else b"G" + struct.pack(">d", value))
            case str() | bytes():
                self.string(value)
            case tuple():
                self.tuple(value)
            case list():
                self.list(value)
            case dict():
                self.dict(value)
            case np.ndarray():
                self.array(value)
            case np.generic():
                scalar = Global("numpy.core.multiarray", "scalar")
                self.emit(Call(scalar, (value.dtype, value.tobytes())))
            case np.dtype():
                self.dtype(value)
            case Global():
                self.named(value)
            case Call():
                self.call(value)
            case Instance():
                self.instance(value)
            case TorchTensor():
                self.emit(_tensor_call(value.values))
            case _Persistent():
                self.emit(value.key)
                self.parts.append(b"Q")
            case _:
                raise TypeError(f"expected a value the old formats hold, got {type(value)!r}")

    def boolean(self, value: bool) -> None:
        old = b"I01\n" if value else b"I00\n"
        self.parts.append(old if self.protocol == 0 else (b"\x88" if value else b"\x89"))

    def integer(self, value: int) -> None:
        if self.protocol == 0:
            self.parts.append(b"I%d\n" % value)
        elif 0 <= value < 256:
            self.parts.append(b"K" + bytes([value]))
        elif 0 <= value < 65536:
            self.parts.append(b"M" + struct.pack("<H", value))
        elif -(2**31) <= value < 2**31:
            self.parts.append(b"J" + struct.pack("<i", value))
        else:
            data = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
            self.parts.append(b"\x8a" + bytes([len(data)]) + data)

    def string(self, value: str | bytes) -> None:
        if self.python == 3 and isinstance(value, str):
            data = value.encode()
            self.parts.append(b"X" + struct.pack("<I", len(data)) + data)
        else:
            data = value.encode("latin1") if isinstance(value, str) else value
            short = len(data) < 256
            if self.protocol == 0:
                self.parts.append(b"S" + repr(data)[1:].encode("ascii") + b"\n")
            elif self.protocol == 3:
                size = bytes([len(data)]) if short else struct.pack("<I", len(data))
                self.parts.append((b"C" if short else b"B") + size + data)
            else:
                size = bytes([len(data)]) if short else struct.pack("<i", len(data))
                self.parts.append((b"U" if short else b"T") + size + data)
        self.put()

    def tuple(self, value: tuple[Any, ...]) -> None:
        if self.protocol > 0 and len(value) == 0:
            self.parts.append(b")")
            return
        if self.protocol > 0 and len(value) <= 3:
            for item in value:
                self.emit(item)
            self.parts.append((b"\x85", b"\x86", b"\x87")[len(value) - 1])
        else:
            self.parts.append(b"(")
            for item in value:
                self.emit(item)
            self.parts.append(b"t")
        self.put()

    def list(self, value: list[Any]) -> None:
        self.parts.append(b"(l" if self.protocol == 0 else b"]")
        self.put()
        if self.protocol > 0 and value:
            self.parts.append(b"(")
        for item in value:
            self.emit(item)
            if self.protocol == 0:
                self.parts.append(b"a")
        if self.protocol > 0 and value:
            self.parts.append(b"e")

    def dict(self, value: dict[Any, Any]) -> None:
        self.parts.append(b"(d" if self.protocol == 0 else b"}")
        self.put()
        if self.protocol > 0 and value:
            self.parts.append(b"(")
        for key, item in value.items():
            self.emit(key)
            self.emit(item)
            if self.protocol == 0:
                self.parts.append(b"s")
        if self.protocol > 0 and value:
            self.parts.append(b"u")

    def named(self, value: Global) -> None:
        if not self.get(value):
            self.parts.append(f"c{value.module}\n{value.name}\n".encode("ascii"))
            self.put(value)

    def call(self, value: Call) -> None:
        self.named(value.function)
        self.tuple(value.arguments)
        self.parts.append(b"R")
        self.put()
        if value.state is not None:
            self.emit(value.state)
            self.parts.append(b"b")

    def instance(self, value: Instance) -> None:
        if self.protocol == 0:
            base = (value.cls, Global("__builtin__", "object"), None)
            self.call(Call(Global("copy_reg", "_reconstructor"), base, value.state))
            return
        self.named(value.cls)
        self.parts.append(b")\x81")
        self.put()
        self.emit(value.state)
        self.parts.append(b"b")

    def dtype(self, value: np.dtype[Any]) -> None:
        if self.get(value.str):
            return
        kind = "O8" if value.hasobject else value.str[1:]
        order = "|" if value.hasobject or value.itemsize == 1 else "<"
        self.named(Global("numpy", "dtype"))
        self.tuple((kind, 0, 1))
        self.parts.append(b"R")
        self.put(value.str)
        self.emit((3, order, None, None, None, -1, -1, 63 if value.hasobject else 0))
        self.parts.append(b"b")

    def array(self, value: Shaped[np.ndarray, "..."]) -> None:
        fortran = bool(value.flags.f_contiguous and not value.flags.c_contiguous)
        items: Any = list(value.ravel()) if value.dtype.hasobject else value.tobytes("A")
        state = (1, tuple(int(n) for n in value.shape), value.dtype, fortran, items)
        rebuild = Global("numpy.core.multiarray", "_reconstruct")
        self.call(Call(rebuild, (Global("numpy", "ndarray"), (0,), b"b"), state))


def dumps(value: Any, protocol: int = 2, python: int = 2) -> bytes:  # noqa: ANN401
    """Return ``value`` as a pickle of an old protocol.

    Args:
        value: None, bool, int, float, str, bytes, tuple, list, dict, numpy arrays, dtypes and
            scalars, and the wrappers of this module, nested at will.
        protocol: 0, 2 or 3.
        python: 2 stores ``str`` as a byte string (latin-1), 3 as Unicode.

    Raises:
        TypeError: A value of another type.
    """
    return _Emitter(protocol, python).dump(value)


def npy_object(value: Any, protocol: int = 2, python: int = 2) -> bytes:  # noqa: ANN401
    """Return a ``.npy`` file that holds ``value`` in a 0-d object array."""
    head = "{'descr': '|O', 'fortran_order': False, 'shape': (), }"
    cell = np.empty((), dtype=object)
    cell[()] = value
    prefix = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118)
    return prefix + head.ljust(117).encode("ascii") + b"\n" + dumps(cell, protocol, python)


def _tensor_call(values: Shaped[np.ndarray, "..."]) -> Call:
    contiguous = np.ascontiguousarray(values)
    strides = tuple(s // contiguous.itemsize for s in contiguous.strides)
    load = Call(Global("torch.storage", "_load_from_bytes"), (_storage_bytes(contiguous),))
    hooks = Call(Global("collections", "OrderedDict"), ())
    shape: Sequence[int] = contiguous.shape
    arguments = (load, 0, tuple(int(n) for n in shape), strides, False, hooks)
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), arguments)


def _storage_bytes(values: Shaped[np.ndarray, "..."]) -> bytes:
    """Return a storage in torch's legacy (pre-zip) serialisation."""
    storage = _TORCH_STORAGE.get(values.dtype.str)
    if storage is None:
        raise TypeError(f"expected one of {sorted(_TORCH_STORAGE)}, got dtype {values.dtype.str}")
    key = str(94000000000000 + values.size)
    system = {
        "protocol_version": TORCH_PROTOCOL,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    name = Global("torch", storage)
    persistent = _Persistent(("storage", name, key, "cpu", int(values.size), None))
    pickles = (TORCH_MAGIC, TORCH_PROTOCOL, system, persistent, [key])
    head = b"".join(dumps(part, protocol=2, python=3) for part in pickles)
    return head + struct.pack("<q", values.size) + values.tobytes()
