"""The code that each stage depends on: its import closure inside this project.

DVC does not follow imports, so a forgotten ``deps`` entry is a stale artefact that nobody notices.
Run as ``python -m pipelines.closure`` to compare dvc.yaml with the closures, with ``--write`` to
update it.

DVC parses and writes the whole of dvc.lock after every stage, seconds for thousands of lines, so
the list is kept short: a folder stands for its modules where a stage needs more than a few of them,
and the ``__init__`` of a package counts only when it holds code. A stage may then run again for a
module beside its own, which costs little where rows are kept; it never misses a change.
"""

import argparse
import ast
import io
import logging
import re
import sys
from collections.abc import Collection
from functools import cache
from pathlib import Path

from stages.runtime.artifacts import write_bytes
from stages.runtime.fingerprint import PACKAGES, module_closure

METHODS = ("deng2019", "mica", "pix2face", "ringnet")
DISPATCHERS = ("stages.train",)
SEVERAL = 0.15  # of a folder's modules
logger = logging.getLogger(__name__)


def files_of(
    modules: set[str], root: Path = Path(), apart: Collection[str] = frozenset()
) -> list[str]:
    """Return the files of ``modules``, a whole folder where most of its modules are needed.

    Args:
        modules: Dotted names.
        root: The checkout.
        apart: Modules that must not come in with a folder.
    """
    never = {_file_of(name, root) for name in apart}
    files = {path for name in modules if not _is_bare(root / (path := _file_of(name, root)))}
    result: set[Path] = set(files)
    for folder in sorted({file.parent for file in files}, key=lambda folder: -len(folder.parts)):
        below = {path.relative_to(root) for path in (root / folder).rglob("*.py")}
        inside = {path for path in below if not _is_bare(root / path)}
        most = len(inside & files) >= SEVERAL * len(inside)
        if len(folder.parts) > 1 and len(inside) > 2 and most and not below & never:
            result = {path for path in result if folder not in path.parents} | {folder}
    return sorted(path.as_posix() for path in result)


def _file_of(module: str, root: Path) -> Path:
    path = Path(*module.split("."))
    package = path / "__init__.py"
    return package if (root / package).is_file() else path.with_suffix(".py")


@cache
def _is_bare(path: Path) -> bool:
    """Tell whether a file is a package's ``__init__`` with nothing but a docstring."""
    if path.name != "__init__.py":
        return False
    return all(isinstance(node, ast.Expr) for node in ast.parse(path.read_bytes()).body)


def stage_module(command: str) -> str:
    """Return the module that a stage's command runs.

    Raises:
        ValueError: The command is not of the form ``python -m stages.NAME ...``.
    """
    match = re.search(r"python -m (stages\.\w+)", command)
    if match is None:
        raise ValueError(f"expected 'python -m stages.NAME ...', got {command!r}")
    return match[1]


def expected_code(command: str) -> list[str]:
    """Return the code files and folders that the stage with this command must list.

    The stage of one method lists what the methods share and its own files, so that a change of one
    method leaves the others alone.
    """
    module = stage_module(command)
    modules = module_closure([module])
    match = re.search(r"--method (\w+)", command)
    apart: set[str] = set()
    if match and module in DISPATCHERS:
        others = set(METHODS) - {match[1]}
        apart = {name for name in modules if name.rsplit(".", 1)[-1] in others}
    return files_of(modules - apart, apart=apart)


def is_code(dep: str) -> bool:
    """Tell code dependencies from data dependencies."""
    return dep.split("/")[0] in PACKAGES


def differences(root: Path = Path()) -> dict[str, tuple[list[str], list[str]]]:
    """Return, per stage that is off, the code deps it lacks and those it should not have."""
    from pipelines.dag import read_graph

    off = {}
    for name, data in read_graph(root).nodes(data=True):
        stage = data["stage"]
        expected = set(expected_code(stage.command))
        listed = {dep for dep in stage.deps if is_code(dep)}
        if expected != listed:
            off[name] = (sorted(expected - listed), sorted(listed - expected))
    return off


def _templated(command: str) -> list[str]:
    """Return the code deps of a group; a method's own files are written with the loop variable."""
    variable = re.search(r"--method (\$\{(?:key|item)\})", command)
    if variable is None or stage_module(command) not in DISPATCHERS:
        return expected_code(command)
    method = METHODS[0]
    listed = expected_code(command.replace(variable[1], method))
    return [re.sub(rf"/{method}\.py$", f"/{variable[1]}.py", dep) for dep in listed]


def write(path: Path = Path("dvc.yaml")) -> None:
    """Rewrite the code deps in ``dvc.yaml``, keeping data deps, comments and order."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 100
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(path.read_text(encoding="utf-8"))
    for entry in document["stages"].values():
        body = entry.get("do", entry)
        data = [dep for dep in body.get("deps", []) if not is_code(str(dep))]
        body["deps"] = [*data, *_templated(str(body["cmd"]))]
    text = io.StringIO()
    yaml.dump(document, text)
    write_bytes(path, text.getvalue().encode())


def main() -> int:
    """Compare or rewrite; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="update dvc.yaml")
    if parser.parse_args().write:
        write()
    off = differences()
    for name, (missing, extra) in sorted(off.items()):
        logger.info("%s: missing %s, needless %s", name, missing, extra)
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
