"""DVC that ends when its starter does: ``python -m pipelines.leashed PID DVC_ARGUMENT...``.

PID is the starter's own. Killed with no chance to clean up, the starter would otherwise leave DVC
and its stage running.
"""

import os
import sys

from stages.process import die_with_parent


def main() -> int:
    """Run DVC under the leash and return its exit status."""
    die_with_parent()
    if os.getppid() != int(sys.argv[1]):
        return 1  # the starter died before the leash was on
    from dvc.cli import main as dvc

    return int(dvc(sys.argv[2:]))


if __name__ == "__main__":
    sys.exit(main())
