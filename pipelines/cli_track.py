"""``faceline track``: its options, its progress bar, its call."""

import argparse
import logging
from pathlib import Path
from types import TracebackType
from typing import Any, Self

logger = logging.getLogger("faceline")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``faceline track``."""
    parser.add_argument("video", type=Path, help="video file, or a folder of frames in name order")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--method", choices=("mica", "pix2face"), default="mica")
    parser.add_argument(
        "--checkpoint", type=Path, help="model.safetensors (default: the one trained here)"
    )
    parser.add_argument("--preset", help="schedule: small or paper (default: track.preset)")
    parser.add_argument(
        "--shape-init",
        choices=("mica", "mean", "free"),
        help="head shape: MICA's, the average, or fitted to the first frames",
    )
    parser.add_argument(
        "--dense",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="colours besides landmarks (default: track.dense)",
    )
    parser.add_argument("--smooth", type=int, choices=(1, 3), help="frames averaged in landmarks")
    parser.add_argument(
        "--focal-px", type=float, help="the camera's focal length, if known; else it is fitted"
    )
    parser.add_argument(
        "--shape", type=Path, help="a known person's beta: .npy, or register's parameters.npz"
    )
    parser.add_argument(
        "--depth",
        type=Path,
        help="folder of reference depths, a .npy or 16-bit .png (mm) per frame",
    )
    parser.add_argument("--meshes", action="store_true", help="write a mesh (OBJ, mm) per frame")
    parser.add_argument("--json", action="store_true")


def track(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Track one video with the parameters, models and checkpoints of a checkout.

    Raises:
        FileNotFoundError: An input is missing.
        ValueError: The video or an option cannot be used.
    """
    from stages.runtime import params
    from stages.runtime.process import go_offline, use_one_thread
    from stages.track import track_video

    go_offline()
    loaded = params.load(root / "params.yaml")
    given = {
        "preset": options.preset,
        "shape_init": options.shape_init,
        "dense": options.dense,
        "smooth": options.smooth
        and loaded.track.smooth.model_dump() | {options.method: options.smooth},
    }
    changed = loaded.track.model_dump() | {k: v for k, v in given.items() if v is not None}
    section = params.TrackParams.model_validate(changed)
    use_one_thread()
    with Bar() as bar:
        return track_video(
            options.video,
            options.out,
            method=options.method,
            loaded=loaded.model_copy(update={"track": section}),
            data=root / "data",
            work=root / ".work",
            checkpoint=options.checkpoint,
            focal_px=options.focal_px,
            shape=options.shape,
            depth=options.depth,
            meshes=options.meshes,
            tell=bar,
        )


class Bar:
    """Progress on stderr: bars on a terminal, a line per step of the work elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        console = Console(stderr=True)
        self._progress: Any = None
        if console.is_terminal:
            columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn())
            self._progress = Progress(*columns, Remaining(), console=console)
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` frames are done; a total of 0 is not known."""
        if self._progress is None:
            if what not in self._tasks:
                self._tasks[what] = None
                logger.info("%s: %s frames", what, total or "unknown number of")
            return
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total or None)
        self._progress.update(self._tasks[what], completed=done)
