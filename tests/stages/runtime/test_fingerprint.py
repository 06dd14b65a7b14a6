"""Fingerprints: the closure agrees with an independent one, and what decides a result counts."""

from pathlib import Path

import pytest

from stages.runtime import fingerprint
from stages.runtime.fingerprint import hash_code, hash_input, module_closure


def grimp_closure(module: str) -> set[str]:
    """The same closure from grimp's graph, packages followed."""
    import grimp

    graph = grimp.build_graph("models", "stages", cache_dir=None)
    found: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            parts = name.split(".")
            todo += [".".join(parts[:end]) for end in range(1, len(parts))]
            if name in graph.modules:
                todo += graph.find_modules_directly_imported_by(name)
    return found


def test_closures_agree_with_another_tool(repository: Path) -> None:
    stages = [path.stem for path in (repository / "stages").glob("*.py") if path.stem[0] != "_"]
    assert len(stages) > 15
    for stage in stages:
        assert module_closure([f"stages.{stage}"]) == grimp_closure(f"stages.{stage}"), stage


def test_the_closure_reaches_into_functions_and_stays_out_of_other_stages() -> None:
    modules = module_closure(["stages.pack"])
    assert {"stages.runtime.artifacts", "stages.datasets.lyhm", "stages"} <= modules
    assert "stages.register" not in modules


def test_a_method_does_not_depend_on_its_siblings() -> None:
    own = module_closure(["models.methods.mica"], through_packages=False)
    assert "models.methods" in own
    assert "models.networks.encoders.iresnet" in own
    assert "models.methods.pix2face" not in own
    assert "models.methods.pix2face" in module_closure(["models.methods.mica"])


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A small project of its own."""
    monkeypatch.setattr(fingerprint, "REPOSITORY", tmp_path)
    texts = {
        "stages/__init__.py": "",
        "stages/runtime/params.py": "A = 1\n",
        "stages/a.py": "import numpy\nfrom . import params\n\ndef f():\n    from models import b\n",
        "models/__init__.py": "",
        "models/b.py": "from models.c.d import x\n",
        "models/c/__init__.py": "from models.c import e\n",
        "models/c/d.py": "x = 1\n",
        "models/c/e.py": "y = 1\n",
        "models/other.py": "z = 1\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("stages/a.py", True),
        ("models/b.py", True),
        ("models/c/d.py", True),
        ("models/c/__init__.py", True),
        ("models/c/e.py", False),
        ("models/other.py", False),
        ("stages/runtime/params.py", False),
    ],
)
def test_code_in_the_closure_changes_the_hash_and_no_other(project, file, counts) -> None:
    before = hash_code("stages.a")
    assert hash_code("stages.a") == before
    (project / file).write_text((project / file).read_text() + "# changed\n")
    assert (hash_code("stages.a") != before) is counts


def test_library_versions_count(project, monkeypatch) -> None:
    before = hash_code("stages.a")
    monkeypatch.setattr(fingerprint, "_version", lambda name: "9" if name == "numpy" else None)
    assert hash_code("stages.a") != before


def test_versions_are_those_of_the_metadata() -> None:
    import importlib.metadata

    for name, distribution in {"numpy": "numpy", "cv2": "opencv-python", "yaml": "PyYAML"}.items():
        assert fingerprint._version(name) == importlib.metadata.version(distribution)
    assert fingerprint._version("no_such_library") is None


class Kept(dict):
    """A memory that counts what it was asked in vain."""

    missed = 0

    def get(self, key):
        self.missed += key not in self
        return super().get(key)

    def put(self, key, row):
        self[key] = row


def test_what_files_import_is_remembered_by_their_content(project, monkeypatch) -> None:
    memory = Kept()
    plain = hash_code("stages.a")
    fingerprint._READ.clear()
    assert hash_code("stages.a", memory=memory) == plain
    assert memory.missed == len(memory) > 0
    fingerprint._READ.clear()
    monkeypatch.setattr(fingerprint.ast, "parse", None)  # nothing is parsed again
    assert hash_code("stages.a", memory=memory) == plain
    monkeypatch.undo()
    monkeypatch.setattr(fingerprint, "REPOSITORY", project)
    (project / "models/b.py").write_text("import models.other\n")
    assert "models.other" in module_closure(["stages.a"], memory=memory)


def test_a_module_that_is_not_there_is_named(project) -> None:
    with pytest.raises(FileNotFoundError, match=r"'stages\.none'"):
        hash_code("stages.none")


def test_inputs_count_by_name_and_content(tmp_path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a").write_text("1")
    first = hash_input(tmp_path / "in")
    (tmp_path / "in/a").rename(tmp_path / "in/b")
    renamed = hash_input(tmp_path / "in")
    (tmp_path / "in/b").write_text("2")
    assert len({first, renamed, hash_input(tmp_path / "in"), hash_input(tmp_path / "in/b")}) == 4
    with pytest.raises(FileNotFoundError, match="run the stage that writes it"):
        hash_input(tmp_path / "none")
