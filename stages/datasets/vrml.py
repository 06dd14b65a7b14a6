"""Triangle meshes from VRML 2.0 text: every ``IndexedFaceSet`` of a file, merged.

Only geometry is taken; scripts, links and prototypes in the file are never run or followed.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from stages.datasets.meshes import Mesh, MeshError, checked, decompressed, numbers, triangulate

# Strings and comments, one ended by the end of the file too. Possessive, so that no file, however
# made, costs more than its length.
_SKIPPED = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|#[^\r\n]*+', re.DOTALL)
_ARRAY = re.compile(rb"(?<!\w)([A-Za-z_]\w*+)[\s,]*+\[([^\[\]{}]*+)(\]|\Z)")
_TOKEN = re.compile(rb"[{}\[\]]|[^\s,{}\[\]]++")
_DEEPEST = 256
"""Open nodes within each other; scene graphs of scanners nest less than ten."""
_MOVES = {
    b"translation": np.zeros(3),
    b"scale": np.ones(3),
    b"rotation": np.zeros(1),  # an angle of 0, the last of its four numbers
}


@dataclass(slots=True)
class _Node:
    kind: bytes
    name: bytes
    arrays: dict[bytes, bytes] = field(default_factory=dict)
    words: list[bytes] = field(default_factory=list)
    points: bytes | None = None


def read_vrml(path: Path) -> Mesh:
    """Read a VRML 2.0 file, gzipped or not; polygons are fanned into triangles.

    Raises:
        MeshError: Another version, no geometry, a truncated or damaged file, parts moved against
            each other, or anything that ``meshes.checked`` refuses.
        FileNotFoundError: There is no such file.
    """
    content = decompressed(path).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not content:
        raise MeshError(f"{path} is empty; expected a VRML file")
    try:
        mesh = _merged(_face_sets(content))
    except (ValueError, OverflowError) as error:
        raise MeshError(f"{path}: {error}") from error
    return checked(mesh, path)


def _face_sets(content: bytes) -> list[_Node]:
    """The ``IndexedFaceSet`` nodes of a file, each with its ``coordIndex`` and points."""
    if content[:10] != b"#VRML V2.0":
        raise MeshError(f"expected a file that starts with '#VRML V2.0', got {content[:16]!r}")
    if b"\0" in content:
        raise MeshError("holds zero bytes; expected VRML text")
    arrays: list[tuple[bytes, bytes]] = []

    def put_aside(match: "re.Match[bytes]") -> bytes:
        name, values, end = match.groups()
        if end != b"]":
            raise MeshError(f"the file ends inside the list '{name.decode('latin1')}': truncated")
        arrays.append((name, values))
        return b" \0%d " % (len(arrays) - 1)

    def blanked(match: "re.Match[bytes]") -> bytes:
        return b'""' if match[0].startswith(b'"') else b""

    text = _ARRAY.sub(put_aside, _SKIPPED.sub(blanked, content))
    return _walk(_TOKEN.findall(text), arrays)


def _walk(tokens: list[bytes], arrays: list[tuple[bytes, bytes]]) -> list[_Node]:
    """Follow braces and names; ``DEF``-ined coordinates may be ``USE``-d again."""
    stack = [_Node(b"", b"")]
    named: dict[bytes, _Node] = {}
    found: list[_Node] = []
    for token in tokens:
        node = stack[-1]
        if token == b"{":
            if len(stack) > _DEEPEST:
                raise MeshError(f"more than {_DEEPEST} nodes open at once; the file is damaged")
            kind = node.words[-1] if node.words else b""
            defined = len(node.words) > 2 and node.words[-3] == b"DEF"
            stack.append(_Node(kind, node.words[-2] if defined else b""))
        elif token == b"}":
            if len(stack) == 1:
                raise MeshError("a '}' closes nothing; the file is damaged")
            _close(stack.pop(), stack[-1], named, found)
        elif token[:1] == b"\0":
            name, values = arrays[int(token[1:])]
            node.arrays[name] = values
        else:
            node.words.append(token)
            if len(node.words) > 1 and node.words[-2] == b"USE" and token in named:
                node.points = named[token].arrays.get(b"point")
    if len(stack) > 1:
        raise MeshError(f"the file ends inside {len(stack) - 1} open nodes: truncated")
    return found


def _close(node: _Node, parent: _Node, named: dict[bytes, _Node], found: list[_Node]) -> None:
    if node.kind == b"Transform":
        _refuse_moves(node)
    elif node.kind == b"Coordinate":
        parent.points = node.arrays.get(b"point", b"")
        if node.name:
            named[node.name] = node
    elif node.kind == b"IndexedFaceSet":
        found.append(node)


def _refuse_moves(node: _Node) -> None:
    """A ``Transform`` that moves its parts would need them moved here; no such set is known."""
    for name, rest in _MOVES.items():
        if name not in node.words:
            continue
        start = node.words.index(name) + 1
        stop = start + (4 if name == b"rotation" else 3)
        values = numbers(b" ".join(node.words[start:stop]), "a Transform's moves")
        if not np.array_equal(values[-len(rest) :], rest):
            raise MeshError(
                f"expected parts in one frame, got a Transform with {name.decode()} "
                f"{' '.join(map(str, values.tolist()))}; export the mesh with its moves applied"
            )


def _merged(found: list[_Node]) -> Mesh:
    vertices: list[np.ndarray] = []
    faces: list[np.ndarray] = []
    count = 0
    for node in found:
        if node.points is None or b"coordIndex" not in node.arrays:
            continue
        points = numbers(node.points.replace(b",", b" "), "points")
        if len(points) % 3:
            raise MeshError(f"its points have {len(points)} numbers, expected three for each")
        triangles = _polygons(node.arrays[b"coordIndex"])
        size = len(points) // 3
        if len(triangles) and (triangles.min() < 0 or triangles.max() >= size):
            raise MeshError(
                f"a polygon refers to point {int(triangles.max())}, expected 0 to {size - 1}; the "
                "file is damaged or truncated"
            )
        if _is_false(node, b"ccw"):
            triangles = triangles[:, ::-1]
        vertices.append(points.reshape(-1, 3))
        faces.append(triangles + count)
        count += size
    if not vertices:
        raise MeshError("it holds no IndexedFaceSet with coordIndex and points")
    return Mesh(np.concatenate(vertices), np.concatenate(faces))


def _is_false(node: _Node, name: bytes) -> bool:
    return name in node.words and node.words[node.words.index(name) + 1 :][:1] == [b"FALSE"]


def _polygons(text: bytes) -> Int[np.ndarray, "f 3"]:
    """Corner indices, polygons ended by -1; the last may lack it."""
    values: Float[np.ndarray, " k"] = numbers(text.replace(b",", b" "), "coordIndex")
    if not (np.abs(values) < 2**31).all() or (values % 1 != 0).any():
        raise MeshError("coordIndex holds indices that are not integers")
    indices = values.astype(np.int64)
    if len(indices) and indices.min() < -1:
        raise MeshError(f"a polygon refers to point {int(indices.min())}, VRML counts from 0")
    ends = np.flatnonzero(np.append(indices, -1) == -1)
    sizes = np.diff(ends, prepend=-1) - 1
    return triangulate(sizes[sizes > 0], indices[indices >= 0])
