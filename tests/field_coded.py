"""H.264 whose fields are coded one by one, as in broadcasts; no encoder here writes it."""

from collections.abc import Iterator

WIDTH = HEIGHT = 64
_DELIMITER = b"\0\0\0\1\x09\x10"


def coded_frames(count: int) -> Iterator[bytes]:
    """Frames of two fields, each of uncompressed gray macroblocks."""
    for number in range(count):
        top, bottom = _field(number, 0, 40 + 4 * number), _field(number, 1, 200)
        yield _DELIMITER + _sequence() + _picture() + top + _DELIMITER + bottom


def _unsigned(*values: int) -> str:
    codes = [format(value + 1, "b") for value in values]
    return "".join("0" * (len(code) - 1) + code for code in codes)


def _unit(header: int, bits: str) -> bytes:
    bits += "1"
    bits += "0" * (-len(bits) % 8)
    escaped = bytearray()
    for byte in int(bits, 2).to_bytes(len(bits) // 8, "big"):
        if byte <= 3 and escaped.endswith(b"\0\0"):
            escaped.append(3)
        escaped.append(byte)
    return b"\0\0\0\1" + bytes([header]) + escaped


def _sequence() -> bytes:
    size = _unsigned(WIDTH // 16 - 1, HEIGHT // 32 - 1)
    timing = f"{1:032b}{50:032b}1"  # 50 fields per second
    return _unit(
        0x67,
        f"{77:08b}{0:08b}{30:08b}"
        + _unsigned(0, 0, 2, 1)
        + "0"
        + size
        + "0010"
        + "1"
        + "0000"
        + "1"
        + timing
        + "0000",
    )


def _picture() -> bytes:
    return _unit(0x68, _unsigned(0, 0) + "00" + _unsigned(0, 0, 0) + "000" + _unsigned(0, 0, 0) + "000")


def _field(number: int, is_bottom: int, luma: int) -> bytes:
    bits = _unsigned(0, 7, 0) + "0000" + f"1{is_bottom}"
    bits += "0" if is_bottom else _unsigned(number % 2) + "00"
    bits += _unsigned(0)
    for _ in range(WIDTH // 16 * HEIGHT // 32):
        bits += _unsigned(25)  # uncompressed
        bits += "0" * (-len(bits) % 8) + f"{luma:08b}" * 256 + f"{128:08b}" * 128
    return _unit(0x61 if is_bottom else 0x65, bits)
