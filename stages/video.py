"""Videos: frames from a file or a folder of pictures, and a file from frames.

OpenCV scales a frame whose size differs from the first one's without a word (since 4.7), so a
file's packets are read beside its frames and the sizes that they state compared: of MJPEG, MPEG-4,
H.264 and HEVC. Of other codecs a change of size is not noticed.
"""

import itertools
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from stages.datasets.images import ImageError, decode_rgb
from stages.picture_size import Size, size_in

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png")
FOLDER_FPS = 25.0
"""Rate of a folder of pictures, which tells none."""
_UNUSED_FPS = 1000.0


class VideoError(ValueError):
    """A video cannot be used; the message names the file or frame and says why."""


@dataclass(frozen=True)
class VideoFrame:
    """One frame.

    Attributes:
        index: From 0.
        name: File name of a picture, or the frame's number.
        image: RGB; None where the picture cannot be read.
        reason: Why it cannot.
    """

    index: int
    name: str
    image: UInt8[np.ndarray, "h w 3"] | None
    reason: str = ""


class Video:
    """A video that can be read from the start any number of times, one frame in memory."""

    def __init__(self, path: Path) -> None:
        """Look at a video file, or a folder of pictures in the order of their names.

        Raises:
            FileNotFoundError: There is nothing at ``path``.
            VideoError: It is no video, or a folder without pictures.
        """
        self.path = path
        self.fps = FOLDER_FPS
        self._pictures: list[Path] = []
        if path.is_dir():
            self._pictures = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not self._pictures:
                raise VideoError(
                    f"expected pictures ({', '.join(SUFFIXES)}) in {path}, found none; give a "
                    "video file or a folder of frames named in their order"
                )
            self.announced = len(self._pictures)
            return
        if not path.is_file():
            raise FileNotFoundError(f"expected a video at {path}, found none")
        capture = _open(path)
        import cv2

        rate, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        capture.release()
        self.fps = float(rate) if 0.0 < rate < _UNUSED_FPS else FOLDER_FPS
        self.announced = int(count) if 0 < count < 1e9 else 0

    @property
    def files(self) -> list[Path]:
        """What the video is read from."""
        return self._pictures or [self.path]

    def __iter__(self) -> Iterator[VideoFrame]:
        """Frames in order; a picture that cannot be read is a frame without an image.

        Raises:
            VideoError: The size changes, or no frame can be read.
        """
        size: tuple[int, ...] | None = None
        for frame in self._pictures_in_order() if self._pictures else self._decoded():
            if frame.image is not None:
                size = size or frame.image.shape
                if frame.image.shape != size:
                    raise VideoError(
                        f"expected {size[1]} x {size[0]} px as in the frames before, got "
                        f"{frame.image.shape[1]} x {frame.image.shape[0]} px in frame {frame.name} "
                        f"of {self.path}; cut the video there and track both parts"
                    )
            yield frame
        if size is None:
            raise VideoError(f"expected at least one readable frame in {self.path}, got none")

    def _pictures_in_order(self) -> Iterator[VideoFrame]:
        for index, picture in enumerate(self._pictures):
            try:
                image = decode_rgb(picture.read_bytes())
            except ImageError as error:
                yield VideoFrame(index, picture.name, None, str(error))
                continue
            yield VideoFrame(index, picture.name, image)

    def _decoded(self) -> Iterator[VideoFrame]:
        """Frames of a file; those that it announces but does not hold come last, without image."""
        import cv2

        capture, index = _open(self.path), 0
        sizes = _sizes(self.path)
        known: Size | None = None
        try:
            while True:
                good, image = capture.read()
                if not good:
                    break
                size = next(sizes, None)
                if size is not None and known is not None and size != known:
                    raise VideoError(
                        f"the picture size of {self.path} changes in frame {index}, from "
                        f"{known[0]} x {known[1]} to {size[0]} x {size[1]} px; cut the video there "
                        "and track both parts"
                    )
                known = size or known
                rgb = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
                yield VideoFrame(index, str(index), rgb)
                index += 1
        finally:
            capture.release()
            sizes.close()
        for lost in range(index, self.announced):
            reason = f"the file announces {self.announced} frames, {index} could be decoded"
            yield VideoFrame(lost, str(lost), None, reason)


def _open(path: Path) -> "cv2.VideoCapture":  # type: ignore[name-defined]
    import cv2

    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise VideoError(
            f"expected a video that OpenCV's FFmpeg can open, got {path}; convert it to MP4 or "
            "give a folder of frames"
        )
    return capture


def _sizes(path: Path) -> Generator[Size | None, None, None]:
    """Width and height that each packet of a file states; None where it states none."""
    import cv2

    capture = _open(path)
    try:
        fourcc = int(capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF
        name = fourcc.to_bytes(4, "little").decode("latin-1")
        if not capture.set(cv2.CAP_PROP_FORMAT, -1):
            return
        while True:
            good, packet = capture.read()
            if not good:
                return
            yield size_in(packet.tobytes(), name)
    finally:
        capture.release()


def write_video(path: Path, frames: Iterable[UInt8[np.ndarray, "h w 3"]], fps: float) -> None:
    """Write RGB frames as MPEG-4 in MP4; the same frames give the same bytes.

    Odd sides lose their last row or column, which the codec cannot hold.

    Raises:
        RuntimeError: The codec is not there.
    """
    import cv2

    stream = iter(frames)
    first = next(stream)
    height, width = (side - side % 2 for side in first.shape[:2])
    path.parent.mkdir(parents=True, exist_ok=True)
    code = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, fps, (width, height))
    if not writer.isOpened():
        raise RuntimeError(
            f"OpenCV cannot write MPEG-4 to {path}; expected its own build of FFmpeg (package "
            "opencv-python)"
        )
    for frame in itertools.chain([first], stream):
        writer.write(np.ascontiguousarray(frame[:height, :width, ::-1]))
    writer.release()
