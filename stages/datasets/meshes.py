"""Triangle meshes in files: OBJ and PLY in, OBJ out; coloured point clouds out, as PLY.

The readers keep every vertex in file order (landmark files count vertices), fan polygons into
triangles, and refuse what cannot be right (NaN, indices out of range, nothing at all), naming the
file and the reason.
"""

import gzip
import itertools
import logging
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

logger = logging.getLogger(__name__)

_WORTH_COMPILING = 2**18
"""Bytes of an OBJ from which the compiled reader is quicker."""
_BEFORE_LOADING = 8
"""Files of that size that the general reader has read by the time the compiled one is loaded."""
_large_files = itertools.count()

_GZIP_MAGIC = b"\x1f\x8b"
_PLY_FORMATS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
_PLY_TYPES = {
    "char": "i1",
    "int8": "i1",
    "uchar": "u1",
    "uint8": "u1",
    "short": "i2",
    "int16": "i2",
    "ushort": "u2",
    "uint16": "u2",
    "int": "i4",
    "int32": "i4",
    "uint": "u4",
    "uint32": "u4",
    "float": "f4",
    "float32": "f4",
    "double": "f8",
    "float64": "f8",
}
_FACE_LISTS = ("vertex_indices", "vertex_index")


class MeshError(ValueError):
    """A mesh file cannot be used; the message names the file and says why."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """A triangle mesh in the file's own unit and frame.

    Attributes:
        vertices: Positions in file order.
        faces: Vertex indices, 0-based; empty for a point cloud.
        colors: RGB per vertex, 0-255, or None.
    """

    vertices: Float[np.ndarray, "n 3"]
    faces: Int[np.ndarray, "f 3"]
    colors: UInt8[np.ndarray, "n 3"] | None = None


def read_mesh(path: Path | str, *, allow_point_cloud: bool = False) -> Mesh:
    """Read an OBJ or PLY file, gzipped or not.

    The kind is decided by content (a PLY starts with ``ply``), not by the suffix.

    Args:
        path: The file.
        allow_point_cloud: Accept a file without faces.

    Raises:
        MeshError: No vertices, NaN or infinite vertices, no faces, indices out of range, or damage.
        FileNotFoundError: There is no such file.
    """
    path = Path(path)
    content = decompressed(path)
    if not content.strip():
        raise MeshError(f"{path} is empty; expected an OBJ or PLY mesh")
    try:
        mesh = _parse_ply(content) if content[:3] == b"ply" else _parse_obj(content)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError) as error:
        raise MeshError(f"{path}: {error}") from error
    return checked(mesh, path, allow_point_cloud=allow_point_cloud)


def checked(mesh: Mesh, path: Path, *, allow_point_cloud: bool = False) -> Mesh:
    """Return the mesh where it can be right.

    Args:
        mesh: As parsed.
        path: For the message.
        allow_point_cloud: Accept a mesh without faces.

    Raises:
        MeshError: No vertices, NaN or infinite vertices, no faces or indices out of range.
    """
    if len(mesh.vertices) == 0:
        raise MeshError(f"{path} has no vertices; expected a mesh")
    broken = ~np.isfinite(mesh.vertices).all(axis=1)
    if broken.any():
        raise MeshError(
            f"{path}: {int(broken.sum())} of {len(broken)} vertices are NaN or infinite, the first "
            f"is vertex {int(broken.argmax())}; the scan is damaged"
        )
    if len(mesh.faces) == 0 and not allow_point_cloud:
        raise MeshError(
            f"{path} has {len(mesh.vertices)} vertices but no faces; expected a surface"
        )
    if len(mesh.faces) and (mesh.faces.min() < 0 or mesh.faces.max() >= len(mesh.vertices)):
        bad = int(mesh.faces.max() if mesh.faces.max() >= len(mesh.vertices) else mesh.faces.min())
        raise MeshError(
            f"{path}: a face refers to vertex {bad} (0-based), expected 0 to "
            f"{len(mesh.vertices) - 1}; the file is damaged or truncated"
        )
    return mesh


def obj_bytes(
    vertices: Float[np.ndarray, "n 3"],
    faces: Int[np.ndarray, "f 3"],
    colors: UInt8[np.ndarray, "n 3"] | None = None,
    *,
    decimals: int = 6,
) -> bytes:
    """A mesh as an OBJ file: ``v`` and ``f`` lines only, colours appended per vertex when given.

    Args:
        vertices: Positions, any unit.
        faces: 0-based vertex indices.
        colors: RGB, 0-255, written as 0-1.
        decimals: Digits after the point: 6 keeps a micrometre when the unit is the metre.
    """
    number = f"%.{decimals}f"
    rows, line = np.asarray(vertices, dtype=np.float64), f"v {number} {number} {number}"
    if colors is not None:
        rows = np.concatenate([rows, np.asarray(colors, dtype=np.float64) / 255], axis=1)
        line += " %.4f %.4f %.4f"
    text = (line + "\n") * len(rows) % tuple(rows.ravel().tolist())
    return text.encode("ascii") + _face_lines(np.asarray(faces, dtype=np.int64).tobytes())


@lru_cache(maxsize=1)
def _face_lines(faces: bytes) -> bytes:
    """Lines of 0-based triangles (f, 3) int64; kept, because mesh after mesh has the same."""
    numbers = (np.frombuffer(faces, np.int64) + 1).tolist()
    return ("f %d %d %d\n" * (len(numbers) // 3) % tuple(numbers)).encode("ascii")


def cloud_ply_bytes(points: Float[np.ndarray, "n 3"], colors: UInt8[np.ndarray, "n 3"]) -> bytes:
    """A coloured point cloud as binary PLY, single precision, in the unit of ``points``."""
    kind = [(axis, "<f4") for axis in "xyz"] + [(f"c{k}", "u1") for k in range(3)]
    rows = np.zeros(len(points), dtype=kind)
    for k, axis in enumerate("xyz"):
        rows[axis], rows[f"c{k}"] = points[:, k], colors[:, k]
    properties = [f"property float {axis}" for axis in "xyz"]
    properties += [f"property uchar {colour}" for colour in ("red", "green", "blue")]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}"]
    text = "\n".join([*header, *properties, "end_header"]) + "\n"
    return text.encode("ascii") + rows.tobytes()


def write_obj(
    path: Path | str,
    vertices: Float[np.ndarray, "n 3"],
    faces: Int[np.ndarray, "f 3"],
    colors: UInt8[np.ndarray, "n 3"] | None = None,
    *,
    decimals: int = 6,
) -> None:
    """Write :func:`obj_bytes` atomically; the folder of ``path`` is created."""
    from stages.runtime.artifacts import write_bytes

    write_bytes(Path(path), obj_bytes(vertices, faces, colors, decimals=decimals))


def triangulate(
    sizes: Int[np.ndarray, " p"], indices: Int[np.ndarray, " k"]
) -> Int[np.ndarray, "f 3"]:
    """Fan polygons into triangles: (0, i, i+1) of each, in polygon order.

    Args:
        sizes: Corners of each polygon, at least 3.
        indices: The polygons' vertex indices one after the other.
    """
    if len(sizes) == 0:
        return np.zeros((0, 3), dtype=np.int64)
    if sizes.min() < 3:
        raise MeshError(f"a face has {int(sizes.min())} corners, expected at least 3")
    if sizes.sum() != len(indices):
        raise MeshError(f"faces have {len(indices)} corners, expected {int(sizes.sum())}")
    if (sizes == 3).all():
        return indices.reshape(-1, 3).astype(np.int64)
    fans = sizes - 2
    first = np.repeat(np.cumsum(sizes) - sizes, fans)
    step = np.arange(fans.sum()) - np.repeat(np.cumsum(fans) - fans, fans)
    corners = np.stack([first, first + step + 1, first + step + 2], axis=1)
    return indices[corners].astype(np.int64)


def decompressed(path: Path) -> bytes:
    """Content of a file, gzipped or not.

    Raises:
        MeshError: A damaged gzip file.
    """
    content = path.read_bytes()
    if not content.startswith(_GZIP_MAGIC):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise MeshError(f"{path} is a damaged gzip file ({error}); fetch it again") from error


def numbers(tokens: bytes, what: str) -> Float[np.ndarray, " k"]:
    """Parse whitespace-separated numbers.

    Raises:
        MeshError: Something else is among them.
    """
    if not tokens.strip():
        return np.zeros(0)
    try:
        return np.fromstring(tokens, sep=" ")
    except (ValueError, DeprecationWarning) as error:
        raise MeshError(f"{what} hold something that is not a number") from error


def _parse_obj(content: bytes) -> Mesh:
    """Parse Wavefront OBJ: ``v`` (with or without colour) and ``f``; the rest is ignored."""
    if len(content) > _WORTH_COMPILING and next(_large_files) >= _BEFORE_LOADING:
        from stages.datasets.plain_obj import read_plain_obj

        plain = read_plain_obj(content)
        if plain is not None:
            return Mesh(*plain)
    vertex_lines, face_lines, seen = _obj_lines(_plain_obj(content))
    vertices, colors = _obj_vertices(vertex_lines)
    return Mesh(vertices, _obj_faces(face_lines, seen), colors)


def _plain_obj(content: bytes) -> bytes:
    """OBJ text with one record per line and nothing but spaces between words."""
    content = content.removeprefix(b"\xef\xbb\xbf")
    if b"\0" in content:
        raise MeshError("holds zero bytes; expected OBJ text")
    if b"\r" in content:
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if b"\\\n" in content:
        content = content.replace(b"\\\n", b" ")
    if b"\t" in content:
        content = content.replace(b"\t", b" ")
    whole_lines = content.count(b"\n#") + content.startswith(b"#")
    if content.count(b"#") > whole_lines:
        content = b"\n".join(line.split(b"#", 1)[0] for line in content.split(b"\n"))
    if b"\n " in content or content.startswith(b" "):
        content = b"\n".join(line.lstrip() for line in content.split(b"\n"))
    return content + b"\n"


@dataclass(frozen=True, slots=True)
class _Lines:
    """The words of all records of one kind, and how many each record has."""

    words: UInt8[np.ndarray, " b"]
    counts: Int[np.ndarray, " r"]


def _obj_lines(content: bytes) -> tuple[_Lines, _Lines, Int[np.ndarray, " r"]]:
    """The ``v`` and the ``f`` records, and how many vertices stand before each ``f``."""
    text = np.frombuffer(content, dtype=np.uint8).copy()
    ends = np.flatnonzero(text == ord("\n"))
    starts = np.concatenate([[0], ends[:-1] + 1])
    keyed = text[np.minimum(starts + 1, len(text) - 1)] == ord(" ")
    keys = text[starts]
    text[starts[keyed]] = ord(" ")
    is_vertex, is_face = keyed & (keys == ord("v")), keyed & (keys == ord("f"))
    lengths = ends - starts + 1
    seen = np.cumsum(is_vertex)[is_face]
    return _lines(text, lengths, is_vertex), _lines(text, lengths, is_face), seen


def _lines(
    text: UInt8[np.ndarray, " b"], lengths: Int[np.ndarray, " n"], wanted: Bool[np.ndarray, " n"]
) -> _Lines:
    """Those lines of a text that are wanted."""
    words = text[np.repeat(wanted, lengths)]
    blank = words <= ord(" ")
    first = np.flatnonzero(~blank[1:] & blank[:-1]) + 1  # every record starts with a blank
    until = np.searchsorted(first, np.cumsum(lengths[wanted]))
    return _Lines(words, np.diff(until, prepend=0))


def _obj_vertices(
    lines: _Lines,
) -> tuple[Float[np.ndarray, "n 3"], UInt8[np.ndarray, "n 3"] | None]:
    if not len(lines.counts):
        return np.zeros((0, 3)), None
    if lines.counts.min() < 3:
        raise MeshError("a vertex line has fewer than 3 numbers; the file is damaged or truncated")
    values = numbers(lines.words.tobytes(), "vertex lines")
    if len(values) != lines.counts.sum():
        raise MeshError("vertex lines hold something that is not a number")
    width = int(lines.counts[0])
    if (lines.counts != width).any():
        start = np.cumsum(lines.counts) - lines.counts
        return values[start[:, None] + np.arange(3)], None
    rows = values.reshape(-1, width)
    vertices = np.ascontiguousarray(rows[:, :3])
    if width not in {6, 7}:
        return vertices, None
    tint = rows[:, 3:6]
    if not np.isfinite(tint).all():
        return vertices, None
    scale = 1.0 if tint.max(initial=0.0) > 1.0 else 255.0
    return vertices, np.clip(np.rint(tint * scale), 0, 255).astype(np.uint8)


def _obj_faces(lines: _Lines, seen: Int[np.ndarray, " r"]) -> Int[np.ndarray, "f 3"]:
    """Triangles of face records; negative indices count back from the last vertex so far."""
    if not len(lines.counts):
        return np.zeros((0, 3), dtype=np.int64)
    tokens = _before_slashes(lines.words).tobytes()
    try:
        indices = np.fromstring(tokens, dtype=np.int64, sep=" ")
    except (ValueError, DeprecationWarning):
        numbers(tokens, "face lines")
        raise MeshError("face lines hold indices that are not integers") from None
    if len(indices) != lines.counts.sum():
        raise MeshError("face lines hold something that is not a number")
    if len(indices) and indices.min() < 0:
        indices = np.where(indices < 0, indices + np.repeat(seen, lines.counts) + 1, indices)
    if len(indices) and indices.min() < 1:
        raise MeshError(f"a face refers to vertex {int(indices.min())}, OBJ counts from 1")
    return triangulate(lines.counts, indices - 1)


def _before_slashes(words: UInt8[np.ndarray, " b"]) -> UInt8[np.ndarray, " b"]:
    """Face words without texture and normal indices: blank from a slash to the next blank."""
    slash = words == ord("/")
    if not slash.any():
        return words
    place = np.arange(len(words), dtype=np.int32)
    last_slash = np.maximum.accumulate(np.where(slash, place, -1))
    last_blank = np.maximum.accumulate(np.where(words <= ord(" "), place, -1))
    return np.where(last_slash > last_blank, np.uint8(ord(" ")), words)


@dataclass(frozen=True, slots=True)
class _Property:
    name: str
    kind: str
    count_kind: str | None = None


@dataclass(frozen=True, slots=True)
class _Element:
    name: str
    count: int
    properties: tuple[_Property, ...]


def _ply_header(content: bytes) -> tuple[str, list[_Element], int]:
    end = content.find(b"end_header")
    if end < 0:
        raise MeshError("PLY without end_header; the file is truncated")
    body = content.index(b"\n", end) + 1
    layout, elements = "", []
    for raw in content[:end].decode("ascii").splitlines():
        words = raw.split()
        if not words or words[0] in {"ply", "comment", "obj_info"}:
            continue
        if words[0] == "format":
            layout = _PLY_FORMATS[words[1]]
        elif words[0] == "element":
            elements.append(_Element(words[1], int(words[2]), ()))
        elif words[0] == "property":
            if words[1] == "list":
                added = _Property(words[4], _PLY_TYPES[words[3]], _PLY_TYPES[words[2]])
            else:
                added = _Property(words[2], _PLY_TYPES[words[1]])
            last = elements[-1]
            elements[-1] = _Element(last.name, last.count, (*last.properties, added))
    if not layout:
        raise MeshError("PLY without a format line")
    if any(element.count < 0 for element in elements):
        raise MeshError("PLY announces a negative number of elements")
    return layout, elements, body


def _parse_ply(content: bytes) -> Mesh:
    """Parse PLY, ascii or binary of either byte order; elements other than vertex, face skipped."""
    layout, elements, position = _ply_header(content)
    columns: dict[str, np.ndarray] = {}
    faces = np.zeros((0, 3), dtype=np.int64)
    tokens = content[position:].split() if layout == "=" else []
    token = 0
    for element in elements:
        lists = [p for p in element.properties if p.count_kind is not None]
        wanted = next((p.name for p in lists if p.name in _FACE_LISTS), None)
        if not lists:
            if layout == "=":
                scalars, token = _ascii_scalars(element, tokens, token)
            else:
                scalars, position = _binary_scalars(element, content, position, layout)
            if element.name == "vertex":
                columns = scalars
            continue
        if layout == "=":
            sizes, indices, token = _ascii_lists(element, wanted, tokens, token)
        else:
            sizes, indices, position = _binary_lists(element, wanted, content, position, layout)
        if element.name == "face" and wanted is not None:
            faces = triangulate(sizes, indices)
    if not {"x", "y", "z"} <= columns.keys():
        return Mesh(np.zeros((0, 3)), faces)
    vertices = np.stack([columns[axis].astype(np.float64) for axis in "xyz"], axis=1)
    return Mesh(vertices, faces, _ply_colors(columns))


def _ply_colors(columns: dict[str, np.ndarray]) -> UInt8[np.ndarray, "n 3"] | None:
    names = ("red", "green", "blue")
    if not set(names) <= columns.keys():
        return None
    rgb = np.stack([columns[name] for name in names], axis=1)
    if rgb.dtype.kind == "f":
        rgb = np.clip(np.rint(rgb * 255), 0, 255)
    return rgb.astype(np.uint8)


def _ascii_scalars(
    element: _Element, tokens: list[bytes], token: int
) -> tuple[dict[str, np.ndarray], int]:
    width = len(element.properties)
    stop = token + width * element.count
    if stop > len(tokens):
        raise MeshError(f"PLY ends inside its {element.count} {element.name} lines: truncated")
    table = numbers(b" ".join(tokens[token:stop]), f"{element.name} lines").reshape(-1, width)
    named = {
        prop.name: table[:, i].astype(prop.kind) if prop.kind[0] != "f" else table[:, i]
        for i, prop in enumerate(element.properties)
    }
    return named, stop


def _ascii_lists(
    element: _Element, wanted: str | None, tokens: list[bytes], token: int
) -> tuple[np.ndarray, np.ndarray, int]:
    sizes, indices = [], []
    for _ in range(element.count):
        for prop in element.properties:
            length = 1
            if prop.count_kind is not None:
                length = int(tokens[token])
                token += 1
            if prop.name == wanted:
                sizes.append(length)
                indices.extend(tokens[token : token + length])
            token += length
    if token > len(tokens):
        raise MeshError(f"PLY ends inside its {element.count} {element.name} lines: truncated")
    return np.array(sizes, np.int64), np.array([int(i) for i in indices], np.int64), token


def _binary_scalars(
    element: _Element, content: bytes, position: int, layout: str
) -> tuple[dict[str, np.ndarray], int]:
    dtype = np.dtype([(p.name, layout + p.kind) for p in element.properties])
    stop = position + dtype.itemsize * element.count
    if stop > len(content):
        raise MeshError(f"PLY ends inside its {element.count} {element.name} records: truncated")
    table = np.frombuffer(content, dtype, element.count, position)
    return {p.name: table[p.name] for p in element.properties}, stop


def _binary_lists(
    element: _Element, wanted: str | None, content: bytes, position: int, layout: str
) -> tuple[np.ndarray, np.ndarray, int]:
    """Read records with lists: at once when every list is as long as the first, else one by one."""
    fields: list[tuple[str, str] | tuple[str, str, tuple[int]]] = []
    lengths: dict[str, int] = {}
    probe = position
    for prop in element.properties:
        if element.count == 0:
            break
        if prop.count_kind is not None:
            count_dtype = np.dtype(layout + prop.count_kind)
            length = int(np.frombuffer(content, count_dtype, 1, probe)[0])
            probe += count_dtype.itemsize + length * np.dtype(prop.kind).itemsize
            lengths[prop.name] = length
            fields.append((f"#{prop.name}", layout + prop.count_kind))
            fields.append((prop.name, layout + prop.kind, (length,)))
        else:
            probe += np.dtype(prop.kind).itemsize
            fields.append((prop.name, layout + prop.kind))
    dtype = np.dtype(fields)
    stop = position + dtype.itemsize * element.count
    if stop <= len(content) and element.count:
        table = np.frombuffer(content, dtype, element.count, position)
        if all((table[f"#{name}"] == length).all() for name, length in lengths.items()):
            if wanted is None:
                return np.zeros(0, np.int64), np.zeros(0, np.int64), stop
            sizes = np.full(element.count, lengths[wanted], np.int64)
            return sizes, table[wanted].ravel().astype(np.int64), stop
    return _binary_lists_slow(element, wanted, content, position, layout)


def _binary_lists_slow(
    element: _Element, wanted: str | None, content: bytes, position: int, layout: str
) -> tuple[np.ndarray, np.ndarray, int]:
    sizes: list[int] = []
    indices: list[np.ndarray] = []
    for _ in range(element.count):
        for prop in element.properties:
            length = 1
            if prop.count_kind is not None:
                count_dtype = np.dtype(layout + prop.count_kind)
                length = int(np.frombuffer(content, count_dtype, 1, position)[0])
                if length < 0:
                    raise MeshError(f"PLY {element.name} list has {length} items")
                position += count_dtype.itemsize
            dtype = np.dtype(layout + prop.kind)
            if prop.name == wanted:
                sizes.append(length)
                indices.append(np.frombuffer(content, dtype, length, position).astype(np.int64))
            position += length * dtype.itemsize
    if position > len(content):
        raise MeshError(f"PLY ends inside its {element.count} {element.name} records: truncated")
    flat = np.concatenate(indices) if indices else np.zeros(0, np.int64)
    return np.array(sizes, np.int64), flat, position
