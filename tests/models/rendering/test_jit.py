"""Compiled kernels on disk: used again, and not beyond the sources they were compiled from."""

import subprocess
import sys
from pathlib import Path

CALLED = """
from models.rendering.jit import kernel

@kernel
def inner(x):
    return x + {added}.0
"""
CALLER = """
from called import inner
from models.rendering.jit import kernel

@kernel
def outer(x):
    return 10.0 * inner(x)
"""
SCRIPT = """
import sys
from pathlib import Path
from models.rendering import jit
jit.SOURCES = [Path(sys.argv[1])]
sys.path.insert(0, sys.argv[1])
from caller import outer
print(outer(1.0), sum(outer.stats.cache_hits.values()))
"""


def outcome(folder: Path, repository: Path) -> tuple[float, int]:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    value, hits = result.stdout.split()
    return float(value), int(hits)


def test_a_change_of_a_called_kernel_in_another_file_is_seen(
    tmp_path: Path, repository: Path
) -> None:
    (tmp_path / "caller.py").write_text(CALLER)
    (tmp_path / "called.py").write_text(CALLED.format(added=1))
    assert outcome(tmp_path, repository) == (20.0, 0)
    assert outcome(tmp_path, repository) == (20.0, 1)
    (tmp_path / "called.py").write_text(CALLED.format(added=2))
    assert outcome(tmp_path, repository) == (30.0, 0)
