"""What decides a result: source code, libraries and input files, as hashes.

Names of resumable and cached state are built from these, so that state of another code, another
library or another input is never found. The source is read, not imported.
"""

import ast
import hashlib
import json
import platform
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Protocol

from stages.runtime.artifacts import sha256_file, sha256_json

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("models", "stages")
DISTRIBUTIONS = {"cv2": "opencv-python", "dlib": "dlib-bin", "yaml": "pyyaml"}
UNCOUNTED = "stages.runtime.params"
"""The package that only carries values which are part of a fingerprint themselves."""


Statement = tuple[str, int, tuple[str, ...]]
"""Module, level and names of one ``from ... import``; the names of an ``import``, level -1."""


class Memory(Protocol):
    """Something that keeps bytes by a SHA-256 in hex."""

    def get(self, key: str) -> bytes | None:
        """What was put there, or None."""

    def put(self, key: str, row: bytes) -> None:
        """Keep it."""


def module_closure(
    modules: Iterable[str], *, through_packages: bool = True, memory: Memory | None = None
) -> set[str]:
    """Modules of this project that ``modules`` import, themselves and their packages included.

    Imports inside functions and under ``TYPE_CHECKING`` count.

    Args:
        modules: Dotted names.
        through_packages: Follow also what the ``__init__`` of a package imports when only a
            module inside it is asked for.
        memory: What the files import, by their hash, from earlier calls.

    Raises:
        FileNotFoundError: There is no such module.
    """
    return set(_followed(modules, through_packages, memory))


def _followed(
    modules: Iterable[str], through_packages: bool, memory: Memory | None
) -> dict[str, tuple[str, ...]]:
    """The closure, with what each module imports; packages that are not followed as well."""
    imports: dict[str, tuple[str, ...]] = {}
    followed: set[str] = set()
    todo = list(modules)
    while todo:
        name = todo.pop()
        if name in followed:
            continue
        followed.add(name)
        parts = name.split(".")
        packages = [".".join(parts[:end]) for end in range(1, len(parts))]
        for other in (name, *packages):
            if other not in imports:
                imports[other] = _imports(other, memory)
        if through_packages:
            todo += packages
        todo += [other for other in imports[name] if other.split(".")[0] in PACKAGES]
    return imports


def hash_code(*modules: str, memory: Memory | None = None) -> str:
    """Hash of the source that ``modules`` run, and of the versions of the libraries it imports.

    A package's ``__init__`` counts with its own text, without what it imports, unless it is
    imported itself: so one method's fingerprint does not depend on the other methods.

    Args:
        modules: Dotted names.
        memory: Spares reading the imports of files that were read before.
    """
    imports = _followed(modules, through_packages=False, memory=memory)
    closure = sorted(name for name in imports if not f"{name}.".startswith(f"{UNCOUNTED}."))
    files = {name: sha256_file(_file(name)) for name in closure}
    outside = {
        other.split(".")[0]
        for name in closure
        for other in imports[name]
        if other.split(".")[0] not in {*PACKAGES, *sys.stdlib_module_names}
    }
    versions = {name: version for name in sorted(outside) if (version := _version(name))}
    return sha256_json({"files": files, "libraries": versions, "python": platform.python_version()})


def hash_input(path: Path) -> str:
    """Hash of a file, or of every file in a folder by relative path.

    Raises:
        FileNotFoundError: There is nothing at ``path``.
    """
    if path.is_file():
        return sha256_file(path)
    if not path.is_dir():
        raise FileNotFoundError(f"expected the input {path}; run the stage that writes it")
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return sha256_json({file.relative_to(path).as_posix(): sha256_file(file) for file in files})


def _file(module: str) -> Path:
    """The file of a module of this project.

    Raises:
        FileNotFoundError: There is none.
    """
    path = REPOSITORY.joinpath(*module.split("."))
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if file.is_file():
            return file
    raise FileNotFoundError(f"expected a module of this project, got {module!r}: no {path}.py")


def _imports(module: str, memory: Memory | None = None) -> tuple[str, ...]:
    """What a module of this project imports anywhere in its text, by absolute name."""
    file = _file(module)
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    found = _statements(file, memory)
    return tuple(sorted({name for statement in found for name in _names(statement, package)}))


_READ: dict[str, list[Statement]] = {}


def _statements(file: Path, memory: Memory | None) -> list[Statement]:
    """The import statements in a file."""
    source = file.read_bytes()
    digest = hashlib.sha256(source).hexdigest()
    if digest in _READ:
        return _READ[digest]
    known = memory.get(digest) if memory is not None else None
    if known is not None:
        found = [(name, level, tuple(names)) for name, level, names in json.loads(known)]
    else:
        found = list(_parsed(ast.parse(source, filename=str(file))))
        if memory is not None:
            memory.put(digest, json.dumps(found).encode())
    _READ[digest] = found
    return found


def _parsed(tree: ast.AST) -> Iterator[Statement]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield "", -1, tuple(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level, tuple(alias.name for alias in node.names)


def _names(statement: Statement, package: str) -> Iterator[str]:
    """Absolute names of the modules that one statement imports."""
    module, level, names = statement
    if level < 0:
        yield from names
        return
    parts = package.split(".")[: len(package.split(".")) - level + 1] if level else []
    base = ".".join([*parts, *([module] if module else [])])
    for name in names:
        inner = f"{base}.{name}"
        yield inner if base.split(".")[0] in PACKAGES and _exists(inner) else base


def _exists(module: str) -> bool:
    place = f"{REPOSITORY}/{module.replace('.', '/')}"
    return Path(f"{place}.py").is_file() or Path(f"{place}/__init__.py").is_file()


def _version(name: str) -> str | None:
    """Version of an installed library by the name it is imported under; None where there is none.

    It stands in the name of the library's folder of metadata, whose text is long.
    """
    return _installed().get(_plain(DISTRIBUTIONS.get(name, name)))


@cache
def _installed() -> dict[str, str]:
    """Versions by plain name; the first folder of the search path counts, as for imports."""
    found: dict[str, str] = {}
    for folder in sys.path:
        for path in Path(folder).glob("*.dist-info"):
            name, _, version = path.name.removesuffix(".dist-info").rpartition("-")
            found.setdefault(_plain(name), version)
    return found


def _plain(name: str) -> str:
    """A distribution's name as all its spellings agree."""
    return re.sub(r"[-_.]+", "_", name).lower()
