"""The picture size that a packet of a coded video states.

JPEG (ITU-T T.81): the frame header. H.264 (ITU-T H.264, 7.3.2.1) and HEVC (ITU-T H.265, 7.3.2.2):
the sequence parameter set, less its cropping. MPEG-4 part 2 (ISO/IEC 14496-2, 6.2.3): the video
object layer. Which of them a packet is read as follows from the stream's FOURCC, since a start code
means another thing in each.
"""

import struct
from collections.abc import Callable, Iterator

Size = tuple[int, int]
START = b"\x00\x00\x01"
_H264_PROFILES_WITH_CHROMA = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)
_HEVC_SPS = 33


def size_in(packet: bytes, fourcc: str) -> Size | None:
    """Width and height in pixels, or None where the packet does not state them.

    Of several headers the first counts. None too where the codec is not among ``CODECS``, or the
    header is cut short or of a kind that is not read (an MPEG-4 object that is no rectangle).
    """
    read = CODECS.get(fourcc.upper())
    try:
        return None if read is None else read(packet)
    except EOFError:
        return None


class _Bits:
    """Reads an unsigned big-endian bit string from its start."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data), 8 * len(data)

    def take(self, count: int) -> int:
        if count > self._left:
            raise EOFError
        self._left -= count
        return (self._value >> self._left) & ((1 << count) - 1)

    def golomb(self) -> int:
        """An unsigned Exp-Golomb code, ue(v)."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)

    def signed(self) -> int:
        """A signed Exp-Golomb code, se(v)."""
        code = self.golomb()
        return (code + 1) // 2 if code % 2 else -(code // 2)


def _units(packet: bytes) -> Iterator[bytes]:
    """What follows each start code, up to the next one."""
    at = packet.find(START)
    while at >= 0:
        end = packet.find(START, at + 3)
        yield packet[at + 3 : len(packet) if end < 0 else end]
        at = end


def _jpeg(packet: bytes) -> Size | None:
    position = 2 if packet.startswith(b"\xff\xd8") else len(packet)
    while position + 9 <= len(packet) and packet[position] == 0xFF:
        marker = packet[position + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", packet, position + 5)
            return width, height
        position += 2 + struct.unpack_from(">H", packet, position + 2)[0]
    return None


def _mpeg4(packet: bytes) -> Size | None:
    layer = next((unit for unit in _units(packet) if unit and 0x20 <= unit[0] <= 0x2F), None)
    if layer is None:
        return None
    bits = _Bits(layer[1:])
    bits.take(1 + 8)  # random access, type
    if bits.take(1):  # identifier: version, priority
        bits.take(4 + 3)
    if bits.take(4) == 15:  # aspect ratio of its own
        bits.take(8 + 8)
    if bits.take(1):  # control parameters: chroma, low delay
        bits.take(2 + 1)
        if bits.take(1):  # rate buffer
            bits.take(79)
    if bits.take(2):  # no rectangle
        return None
    bits.take(1)
    resolution = bits.take(16)
    bits.take(1)
    if bits.take(1):  # fixed time increment, of as many bits as hold resolution - 1
        bits.take(max(1, (resolution - 1).bit_length()))
    bits.take(1)
    width = bits.take(13)
    bits.take(1)
    return width, bits.take(13)


def _h264(packet: bytes) -> Size | None:
    sps = next((unit for unit in _units(packet) if unit and unit[0] & 0x1F == 7), None)
    if sps is None:
        return None
    bits = _Bits(_without_emulation(sps[1:]))
    profile = bits.take(8)
    bits.take(8 + 8)  # constraints, level
    bits.golomb()  # id
    chroma = 1
    if profile in _H264_PROFILES_WITH_CHROMA:
        chroma = bits.golomb()
        bits.take(1 if chroma == 3 else 0)
        bits.golomb(), bits.golomb()  # bit depths
        bits.take(1)
        if bits.take(1):
            for index in range(12 if chroma == 3 else 8):
                if bits.take(1):
                    _skip_scaling_list(bits, 16 if index < 6 else 64)
    bits.golomb()  # length of frame numbers
    order = bits.golomb()
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.take(1)
        bits.signed(), bits.signed()
        for _ in range(bits.golomb()):
            bits.signed()
    bits.golomb()  # reference frames
    bits.take(1)
    width, height = 16 * (bits.golomb() + 1), 16 * (bits.golomb() + 1)
    fields = 1 if bits.take(1) else 2
    bits.take(fields)  # direct inference, after the flag of adaptive coding where there are fields
    left, top = _cropped(bits, chroma)
    return width - left, fields * (height - top)


def _hevc(packet: bytes) -> Size | None:
    sps = next(filter(_is_base_sps, _units(packet)), None)
    if sps is None:
        return None
    bits = _Bits(_without_emulation(sps[2:]))
    bits.take(4)
    layers = bits.take(3)
    bits.take(1 + 88 + 8)  # nesting, profile and level
    present = [(bits.take(1), bits.take(1)) for _ in range(layers)]
    bits.take(2 * (8 - layers) if layers else 0)
    for profile, level in present:
        bits.take(88 * profile + 8 * level)
    bits.golomb()  # id
    chroma = bits.golomb()
    bits.take(1 if chroma == 3 else 0)
    width, height = bits.golomb(), bits.golomb()
    left, top = _cropped(bits, chroma)
    return width - left, height - top


def _is_base_sps(unit: bytes) -> bool:
    """Whether a unit is a sequence parameter set of layer 0: others (depth, views) read unlike."""
    if len(unit) < 2:
        return False
    layer = (unit[0] & 1) << 5 | unit[1] >> 3
    return (unit[0] >> 1) & 0x3F == _HEVC_SPS and layer == 0


def _without_emulation(data: bytes) -> bytes:
    """The payload of a unit: two zeros are followed by a 3 that is not part of it."""
    return data.replace(b"\x00\x00\x03", b"\x00\x00")


def _skip_scaling_list(bits: _Bits, count: int) -> None:
    last = following = 8
    for _ in range(count):
        if following:
            following = (last + bits.signed()) % 256
        last = following or last


def _cropped(bits: _Bits, chroma: int) -> Size:
    """Columns and rows that are cut off; rows of one field where a frame has two."""
    if not bits.take(1):
        return 0, 0
    left, right, top, bottom = (bits.golomb() for _ in range(4))
    across, down = (2 if chroma in (1, 2) else 1), (2 if chroma == 1 else 1)
    return across * (left + right), down * (top + bottom)


CODECS: dict[str, Callable[[bytes], Size | None]] = {
    **dict.fromkeys(("MJPG", "JPEG"), _jpeg),
    **dict.fromkeys(("FMP4", "MP4V", "XVID", "DIVX", "DX50"), _mpeg4),
    **dict.fromkeys(("H264", "X264", "AVC1", "AVC3"), _h264),
    **dict.fromkeys(("HEVC", "H265", "X265", "HVC1", "HEV1"), _hevc),
}
"""Readers by FOURCC in capital letters."""
