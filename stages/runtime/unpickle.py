"""Reading other people's pickles without executing anything.

FLAME, its embeddings and several data-set lists are distributed as pickles, most of them written by
Python 2. A pickle is a program; `pickle.load` runs it. Here the program is only *interpreted*: the
opcodes that would call something (REDUCE, NEWOBJ, INST, OBJ, BUILD) make inert records instead, a
global is accepted only when it is on the short list below, and after the last opcode the records
known to be data (numpy arrays, sparse matrices, chumpy leaves, torch tensors) are turned into numpy
and scipy values by the code in this file. Everything else is refused with its name.
"""

import ast
import io
import math
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

_NPY_MAGIC = b"\x93NUMPY"
_NPY_HEADER_LIMIT = 65_536
_LONG_SUFFIX = re.compile(r"(\d)L\b")
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_TORCH_STORAGE = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_SPARSE = {f"{kind}_{form}": kind for kind in ("csc", "csr", "coo") for form in ("matrix", "array")}
_DTYPE_KINDS = frozenset("biufcSUO")
_BUILTIN_MODULES = frozenset({"__builtin__", "builtins"})
_NUMPY_CORE = ("numpy.core.", "numpy._core.")
_DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    OverflowError,
    RecursionError,
    MemoryError,
    struct.error,
)


_PLAIN = (str, bytes, bytearray, int, float, complex, type(None), np.ndarray, np.generic, np.dtype)


class PickleReadError(ValueError):
    """The bytes are not a pickle this reader can turn into data."""


class UnsafePickleError(PickleReadError):
    """The pickle asks for something that is not data."""


@dataclass(frozen=True, slots=True)
class _Global:
    """A name the pickle refers to: a token, never the object of that name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class _Record:
    """What a calling opcode leaves behind: whom it would have called, with what, and the state."""

    head: _Global
    args: tuple[Any, ...]
    state: Any = None
    built: bool = field(default=False)


def _canonical(module: str, name: str) -> _Global | None:
    """The accepted global of this name, Python 2 and numpy-1 names folded; None if not accepted."""
    for prefix in _NUMPY_CORE:
        if module.startswith(prefix):
            module = "numpy.core." + module.removeprefix(prefix)
    if module in _BUILTIN_MODULES:
        accepted = name in _BUILTINS or name in {"object", "bytes"}
        return _Global("builtins", name) if accepted else None
    if module in {"copy_reg", "copyreg"}:
        return _Global("copyreg", name) if name == "_reconstructor" else None
    if module.startswith("scipy.sparse") and name in _SPARSE:
        return _Global("scipy.sparse", name)
    if module == "chumpy" or module.startswith("chumpy."):
        return _Global(module, name)
    if module == "torch" and name in _TORCH_STORAGE:
        return _Global(module, name)
    if (module, name) in _DATA_GLOBALS:
        return _Global(module, name)
    return None


_DATA_GLOBALS = frozenset(
    {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy", "matrix"),
        ("numpy.matrixlib.defmatrix", "matrix"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy.core.numeric", "_frombuffer"),
        ("collections", "OrderedDict"),
        ("_codecs", "encode"),
        ("torch._utils", "_rebuild_tensor"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch.storage", "_load_from_bytes"),
    }
)


class _Interpreter(pickle._Unpickler):
    """The pure-Python pickle machine with every opcode that calls something replaced."""

    # The parent's table is copied, so nothing outside this class changes.
    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]

    def __init__(self, stream: io.BytesIO, source: str) -> None:
        super().__init__(stream, fix_imports=False, encoding="latin1")
        self.source = source
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - the parent's signature
        token = _canonical(module, name)
        if token is None:
            raise UnsafePickleError(
                f"{self.source} refers to {module}.{name}, which is not data: refused, nothing was "
                "executed. Expected numpy, scipy.sparse, chumpy or torch arrays in plain "
                "containers; get the file from its owner again."
            )
        return token

    def persistent_load(self, pid: Any) -> Any:  # noqa: ANN401 - the parent's signature
        if isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage":
            kind, key, count = pid[1], str(pid[2]), pid[4]
            if isinstance(kind, _Global) and kind.name in _TORCH_STORAGE and type(count) is int:
                view = pid[5] if len(pid) > 5 else None
                if view is None:
                    return self.storages.setdefault(key, _Storage(_TORCH_STORAGE[kind.name], count))
        raise UnsafePickleError(f"{self.source} holds the unknown persistent id {pid!r}: refused.")

    def _make(self, head: object, args: object) -> Any:  # noqa: ANN401 - any plain value
        if not isinstance(head, _Global) or not isinstance(args, tuple):
            raise UnsafePickleError(
                f"{self.source} calls a {type(head).__name__}, which is not data: refused, nothing "
                "was executed."
            )
        if head.module == "builtins" and head.name in _BUILTINS:
            if any(isinstance(arg, _Global) for arg in args):
                raise UnsafePickleError(f"{self.source} passes a global to {head}: refused.")
            return _BUILTINS[head.name](*args)
        if head == _Global("builtins", "bytes") and not args:
            return b""
        if head == _Global("collections", "OrderedDict") and len(args) <= 1:
            return OrderedDict(*args)
        if head == _Global("_codecs", "encode"):
            return _encode(args)
        if head == _Global("copyreg", "_reconstructor"):
            return self._make(args[0], ())
        if head.module == "builtins":
            raise UnsafePickleError(f"{self.source} calls {head}: refused.")
        return _Record(head, args)

    def _reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._make(self.stack[-1], args)

    def _newobj_ex(self) -> None:
        keywords = self.stack.pop()
        if keywords:
            raise UnsafePickleError(f"{self.source} builds an object by keywords: refused.")
        self._reduce()

    def _inst(self) -> None:
        module = self.readline()[:-1].decode("ascii")  # type: ignore[attr-defined]
        name = self.readline()[:-1].decode("ascii")  # type: ignore[attr-defined]
        args = tuple(self.pop_mark())  # type: ignore[attr-defined]
        self.stack.append(self._make(self.find_class(module, name), args))

    def _obj(self) -> None:
        head, *args = self.pop_mark()  # type: ignore[attr-defined]
        self.stack.append(self._make(head, tuple(args)))

    def _build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, OrderedDict) and not state:
            return
        if not isinstance(target, _Record) or target.built:
            raise UnsafePickleError(
                f"{self.source} sets the state of a {type(target).__name__}: refused."
            )
        target.state = state
        target.built = True

    def _bytearray8(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))  # type: ignore[attr-defined]
        content = self.read(length)  # type: ignore[attr-defined]
        self.stack.append(bytearray(content))

    def _refuse(self) -> None:
        raise UnsafePickleError(
            f"{self.source} uses pickle extension codes or out-of-band buffers: refused."
        )

    dispatch[pickle.REDUCE[0]] = _reduce
    dispatch[pickle.NEWOBJ[0]] = _reduce
    dispatch[pickle.NEWOBJ_EX[0]] = _newobj_ex
    dispatch[pickle.INST[0]] = _inst
    dispatch[pickle.OBJ[0]] = _obj
    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.BYTEARRAY8[0]] = _bytearray8
    for _code in (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER):
        dispatch[_code[0]] = _refuse


def _encode(args: tuple[Any, ...]) -> bytes:
    if len(args) == 2 and isinstance(args[0], str) and args[1] in {"latin1", "latin-1"}:
        return args[0].encode("latin1")
    raise UnsafePickleError("only _codecs.encode(text, 'latin1') is data: refused.")


_BUILTINS: dict[str, Callable[..., Any]] = {
    "set": set,
    "frozenset": frozenset,
    "list": list,
    "dict": dict,
    "tuple": tuple,
    "complex": complex,
    "bytearray": lambda *args: bytearray(_as_bytes(*args)) if args else bytearray(),
}


def _as_bytes(raw: object, codec: object = "latin1") -> bytes:
    """Raw content: bytes, or the latin1 text that Python 2 byte strings become."""
    if isinstance(raw, str) and codec in {"latin1", "latin-1"}:
        return raw.encode("latin1")
    if isinstance(raw, bytes | bytearray):
        return bytes(raw)
    raise PickleReadError(f"array content must be bytes, got {type(raw).__name__}")


@dataclass(slots=True, eq=False)
class _Storage:
    """A torch storage: dtype and count from the persistent id, bytes from behind the pickle."""

    dtype: str
    count: int
    raw: bytes = b""

    def array(self) -> np.ndarray:
        expected = self.count * np.dtype(self.dtype).itemsize
        if self.count < 0 or len(self.raw) != expected:
            raise PickleReadError(f"torch storage has {len(self.raw)} bytes, expected {expected}")
        return np.frombuffer(self.raw, dtype=self.dtype)


def _dtype(record: object) -> np.dtype[Any]:
    if not isinstance(record, _Record) or record.head != _Global("numpy", "dtype"):
        raise PickleReadError("array without a numpy dtype")
    code = record.args[0]
    if isinstance(code, bytes):
        code = code.decode("latin1")
    if not isinstance(code, str) or len(code) > 16 or code[:1] not in _DTYPE_KINDS:
        raise PickleReadError(f"numpy dtype {code!r} is not supported")
    dtype = np.dtype(code)
    if record.state is not None:
        order, fields = record.state[1], record.state[2:5]
        if any(part is not None for part in fields):
            raise PickleReadError(f"structured numpy dtype {code!r} is not supported")
        if isinstance(order, bytes):
            order = order.decode("latin1")
        if order in {"<", ">"}:
            dtype = dtype.newbyteorder(order)
    return dtype


def _shape(raw: object) -> tuple[int, ...]:
    sizes = raw if isinstance(raw, tuple) else (raw,)
    if not all(isinstance(n, int) and n >= 0 for n in sizes) or len(sizes) > 32:
        raise PickleReadError(f"array shape {raw!r} is not a tuple of sizes")
    return cast("tuple[int, ...]", sizes)


class _Resolver:
    """Turns the interpreter's records into values, once each, keeping shared references shared."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.done: dict[int, tuple[Any, Any]] = {}  # node kept alive beside its value
        self.open: set[int] = set()

    def value(self, node: Any) -> Any:  # noqa: ANN401 - any plain value
        if isinstance(node, _PLAIN):
            return node
        if id(node) in self.done:
            return self.done[id(node)][1]
        if isinstance(node, list):
            self.done[id(node)] = (node, node)
            node[:] = [self.value(item) for item in node]
            return node
        if isinstance(node, dict):
            self.done[id(node)] = (node, node)
            items = [(self.value(key), self.value(item)) for key, item in node.items()]
            node.clear()
            node.update(items)
            return node
        if id(node) in self.open:
            raise PickleReadError(f"{self.source} holds an object that contains itself")
        self.open.add(id(node))
        try:
            result = self._fresh(node)
            self.done[id(node)] = (node, result)
        finally:
            self.open.discard(id(node))
        return result

    def _fresh(self, node: Any) -> Any:  # noqa: ANN401 - any plain value
        if isinstance(node, tuple):
            return tuple(self.value(item) for item in node)
        if isinstance(node, set | frozenset):
            return type(node)(self.value(item) for item in node)
        if isinstance(node, _Record):
            return self._record(node)
        raise UnsafePickleError(f"{self.source} holds a bare reference to {node}: refused.")

    def _record(self, node: _Record) -> Any:  # noqa: ANN401 - any plain value
        head, args = node.head, node.args
        if head.module == "chumpy" or head.module.startswith("chumpy."):
            return self._chumpy(node)
        if head.module == "scipy.sparse":
            return self._sparse(node)
        if head.name == "_reconstruct":
            return self._array(node.state)
        if head.name == "scalar":
            dtype = _dtype(args[0])
            return self._from_bytes(dtype, (), args[1] if len(args) > 1 else b"")[()]
        if head.name == "_frombuffer":
            return self._from_bytes(_dtype(args[1]), _shape(args[2]), args[0], args[3] == "F")
        if head == _Global("numpy", "dtype"):
            return _dtype(node)
        if head.name in {"_rebuild_tensor", "_rebuild_tensor_v2"}:
            return self._tensor(args)
        if head.name == "_rebuild_parameter":
            return self.value(args[0])
        if head.name == "_load_from_bytes":
            raise PickleReadError(f"{self.source} holds a torch storage outside a tensor")
        raise UnsafePickleError(f"{self.source} builds a {head}, which is not data: refused.")

    def _array(self, state: object) -> np.ndarray:
        if not isinstance(state, tuple) or len(state) not in {4, 5}:
            raise PickleReadError(f"{self.source} holds a numpy array without state")
        raw_shape, raw_dtype, fortran, raw = state[-4:]
        dtype, shape = _dtype(raw_dtype), _shape(raw_shape)
        if dtype.kind != "O":
            return self._from_bytes(dtype, shape, raw, bool(fortran))
        if not isinstance(raw, list) or len(raw) != math.prod(shape):
            raise PickleReadError(f"{self.source} holds an object array with missing items")
        out = np.empty(len(raw), dtype=object)
        for i, item in enumerate(raw):
            out[i] = self.value(item)
        return out.reshape(shape, order="F" if fortran else "C")

    def _from_bytes(
        self, dtype: np.dtype[Any], shape: tuple[int, ...], raw: object, fortran: bool = False
    ) -> np.ndarray:
        content = _as_bytes(raw)
        count = math.prod(shape)
        if dtype.kind == "O" or len(content) != count * dtype.itemsize:
            raise PickleReadError(
                f"{self.source} holds an array {shape} of {dtype} with {len(content)} bytes, "
                f"expected {count * dtype.itemsize}; the file is damaged"
            )
        if count == 0:
            return np.zeros(shape, dtype=dtype)
        if dtype.itemsize == 0:
            raise PickleReadError(f"{self.source} holds {count} items of {dtype} without content")
        flat = np.frombuffer(content, dtype=dtype)
        return np.array(flat.reshape(shape, order="F" if fortran else "C"), order="K")

    def _chumpy(self, node: _Record) -> np.ndarray:
        """The value of a chumpy object: a leaf's array, or a reordering of one."""
        state = node.state if isinstance(node.state, dict) else {}
        if "x" in state:
            return np.asarray(self.value(state["x"]))
        if "a" in state:
            inner = np.asarray(self.value(state["a"]))
            if node.head.name == "Select":
                idxs = np.asarray(self.value(state["idxs"]))
                shape = self.value(state.get("preferred_shape")) or idxs.shape
                return cast("np.ndarray", inner.ravel()[idxs].reshape(shape))
            if node.head.name == "transpose":
                return inner.transpose(self.value(state.get("axes")))
            if node.head.name == "reshape":
                return inner.reshape(self.value(state["newshape"]))
        raise PickleReadError(
            f"{self.source} holds a {node.head} whose value is computed, not stored; expected a "
            "leaf with its array. Load it once where chumpy runs and save plain arrays."
        )

    def _sparse(self, node: _Record) -> Any:  # noqa: ANN401 - scipy's classes carry no types
        import scipy.sparse

        state = self.value(node.state)
        if not isinstance(state, dict):
            raise PickleReadError(f"{self.source} holds a {node.head} without state")
        shape = _shape(state["_shape"] if "_shape" in state else state.get("shape"))
        data = np.asarray(state["data"])
        kind = _SPARSE[node.head.name]
        if kind == "coo":
            row, col = state["coords"] if "coords" in state else (state["row"], state["col"])
            return scipy.sparse.coo_matrix((data, (row, col)), shape=shape)
        make = scipy.sparse.csc_matrix if kind == "csc" else scipy.sparse.csr_matrix
        out = make((data, state["indices"], state["indptr"]), shape=shape)
        out.check_format(full_check=True)
        return out

    def _tensor(self, args: tuple[Any, ...]) -> np.ndarray:
        holder, offset, size, stride = args[:4]
        if isinstance(holder, _Record) and holder.head.name == "_load_from_bytes":
            holder = _read_torch_storage(_as_bytes(holder.args[0]), self.source)
        if not isinstance(holder, _Storage):
            raise PickleReadError(f"{self.source} holds a torch tensor without storage")
        flat = holder.array()
        sizes, strides = _shape(tuple(size)), _shape(tuple(stride))
        if len(sizes) != len(strides) or not isinstance(offset, int) or offset < 0:
            raise PickleReadError(f"{self.source} holds a torch tensor of damaged layout")
        if math.prod(sizes) == 0:
            return np.zeros(sizes, dtype=flat.dtype)
        last = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
        if last >= flat.size:
            raise PickleReadError(f"{self.source} holds a torch tensor larger than its storage")
        steps = tuple(step * flat.itemsize for step in strides)
        return np.array(np.lib.stride_tricks.as_strided(flat[offset:], sizes, steps))


def _read_torch_storage(content: bytes, source: str) -> _Storage:
    """One storage in torch's legacy format: three header pickles, the object, its keys, raw bytes.

    Source: torch/serialization.py `_legacy_save`, the layout only.
    """
    stream = io.BytesIO(content)
    source = f"{source} (embedded torch storage)"
    if _interpret(stream, source).load() != _TORCH_MAGIC:
        raise PickleReadError(f"{source} has no torch magic number")
    _interpret(stream, source).load()
    _interpret(stream, source).load()
    machine = _interpret(stream, source)
    holder = machine.load()
    keys = _interpret(stream, source).load()
    if not isinstance(holder, _Storage) or not isinstance(keys, list):
        raise PickleReadError(f"{source} is not one storage")
    for key in keys:
        storage = machine.storages[str(key)]
        (count,) = struct.unpack("<q", stream.read(8))
        if count != storage.count:
            raise PickleReadError(f"{source} holds {count} numbers, expected {storage.count}")
        storage.raw = stream.read(count * np.dtype(storage.dtype).itemsize)
    return holder


def _interpret(stream: io.BytesIO, source: str) -> _Interpreter:
    return _Interpreter(stream, source)


def read_pickle(path_or_bytes: Path | str | bytes, *, source: str | None = None) -> object:
    """Read a pickle as data; nothing in it is executed.

    Python 2 byte strings come back as latin1 text. numpy arrays and scalars, scipy.sparse csc, csr
    and coo matrices, chumpy leaves (as their arrays), torch tensors (as numpy arrays), OrderedDict
    and the builtin containers are supported.

    Args:
        path_or_bytes: A file, or the pickle's bytes.
        source: Name used in error messages when bytes are given.

    Raises:
        UnsafePickleError: The pickle refers to a global that is not data; names it and the file.
        PickleReadError: The pickle is damaged, or stores something that cannot become data.
        FileNotFoundError: There is no such file.
    """
    if isinstance(path_or_bytes, bytes):
        content, source = path_or_bytes, source or "<bytes>"
    else:
        content, source = Path(path_or_bytes).read_bytes(), source or str(path_or_bytes)
    try:
        return _Resolver(source).value(_interpret(io.BytesIO(content), source).load())
    except PickleReadError as error:
        if source in str(error):
            raise
        raise type(error)(f"{source}: {error}") from error
    except _DAMAGE as error:
        raise PickleReadError(
            f"{source} is not a readable pickle ({type(error).__name__}: {error}); expected a "
            "complete pickle of arrays, got a damaged or foreign file. Fetch it again."
        ) from error


def read_npy(path: Path | str) -> Any:  # noqa: ANN401 - an array, or whatever a 0-d object array holds
    """Read an npy file; object arrays go through the restricted reader.

    Returns:
        The array; for a 0-dimensional object array (how Python dictionaries are stored in npy
        files) the object inside it.

    Raises:
        UnsafePickleError: An object array refers to a global that is not data.
        PickleReadError: The file is no npy file, or is damaged.
    """
    path = Path(path)
    content = path.read_bytes()
    if not content.startswith(_NPY_MAGIC):
        raise PickleReadError(f"{path} is not an npy file: it starts with {content[:6]!r}")
    try:
        dtype, fortran, shape, start = _npy_header(content)
        if dtype.kind != "O":
            flat = np.frombuffer(content, dtype, math.prod(shape), start)
            return np.array(flat.reshape(shape, order="F" if fortran else "C"), order="K")
    except _DAMAGE as error:
        raise PickleReadError(f"{path} is not a readable npy file: {error}") from error
    array = read_pickle(content[start:], source=str(path))
    if not isinstance(array, np.ndarray) or array.dtype != object:
        raise PickleReadError(f"{path} announces an object array but holds {type(array).__name__}")
    return array[()] if shape == () else array


def _npy_header(content: bytes) -> tuple[np.dtype[Any], bool, tuple[int, ...], int]:
    """Type, Fortran order, shape and where the data starts.

    Read here because numpy's parser warns about, or chokes on, headers written by Python 2.
    """
    size, start = (2, 10) if content[6] == 1 else (4, 12)
    length = int.from_bytes(content[8 : 8 + size], "little")
    if length > _NPY_HEADER_LIMIT or start + length > len(content):
        raise ValueError(f"a header of {length} bytes")
    text = content[start : start + length].decode("latin1")
    try:
        header = ast.literal_eval(_LONG_SUFFIX.sub(r"\1", text).strip())
    except SyntaxError as error:
        raise ValueError(f"a damaged header {text.strip()!r}") from error
    if not isinstance(header, dict) or header.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError(f"a damaged header {text.strip()!r}")
    if not isinstance(header["descr"], str):
        raise TypeError("structured records, which are not supported")
    dtype = np.dtype(header["descr"])
    if dtype.kind not in _DTYPE_KINDS:
        raise ValueError(f"items of type {dtype}, which are not supported")
    return dtype, bool(header["fortran_order"]), _shape(header["shape"]), start + length
