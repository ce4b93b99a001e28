"""Find media files that are cut off, by the size that their container announces. Decoders do not report it.

Only the structure is read: RIFF (.wav, .avi), MP4, Matroska (.mkv, .webm), Flash, Ogg, and MP3 with a Xing header.
"""

import os
from pathlib import Path
from typing import BinaryIO

_ALLOWED = 0.01  # of the announced size may be missing: some programs count their own header wrong
_UNKNOWN_LENGTH = 0x7FFFF000  # this and more: written to a pipe, the length was not known
_BOXES = {b"ftyp", b"styp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"uuid", b"sidx", b"mfra"}
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_LAST_PAGE = 2 * 65_536  # bytes: an Ogg page has at most 65,307
_END_OF_STREAM = 4


def missing_part(path: Path) -> str:
    """A text about what a media file lacks; "" where it is whole, or its container announces no size."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(12)
        if head[:4] == b"OggS":
            return _missing_of_ogg(file, size)
        if head[:3] == b"FLV":
            return "its last tag is not whole" if _end_of_flash(file, size) > size else ""
        if head[:4] in (b"RIFF", b"RF64"):
            announced = _end_of_riff(file, size)
        elif head[4:8] in _BOXES:
            announced = _end_of_mp4(file, size)
        elif head[:4] == _EBML:
            announced = _end_of_matroska(file)
        else:
            announced = _end_of_mp3(file)
    return f"it holds {size} of {announced} bytes" if size < (1 - _ALLOWED) * announced else ""


def _end_of_riff(file: BinaryIO, size: int) -> int:
    """The end of the last RIFF chunk; a large .avi has several."""
    end = 0
    while end < size:
        file.seek(end)
        head = file.read(28)
        length = int.from_bytes(head[4:8], "little")
        if head[:4] == b"RF64" and head[12:16] == b"ds64":
            length = int.from_bytes(head[20:28], "little")
        elif head[:4] != b"RIFF" or length >= _UNKNOWN_LENGTH:
            break
        end += 8 + length + length % 2
    return end


def _end_of_mp4(file: BinaryIO, size: int) -> int:
    """The end of the last box of an MP4 file."""
    end = 0
    while end < size:
        file.seek(end)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if head[4:8] not in _BOXES or length < 8:  # 0: up to the end of the file
            break
        end += length
    return end


def _end_of_matroska(file: BinaryIO) -> int:
    """The end of the segment of a Matroska file; 0 where it was written to a pipe."""

    def number() -> int | None:
        first = file.read(1)
        width = 9 - first[0].bit_length() if first and first[0] else 0
        if not width:
            return None
        value = int.from_bytes(first + file.read(width - 1), "big") & ((1 << 7 * width) - 1)
        return None if value == (1 << 7 * width) - 1 else value  # all ones: not known

    file.seek(len(_EBML))
    header = number()
    if header is None:
        return 0
    file.seek(header, os.SEEK_CUR)
    if file.read(4) != _SEGMENT:
        return 0
    length = number()
    return 0 if length is None else file.tell() + length


def _end_of_flash(file: BinaryIO, size: int) -> int:
    """The end of the last tag of a Flash file, with the length behind it."""
    file.seek(5)
    end = int.from_bytes(file.read(4), "big") + 4
    while end < size:
        file.seek(end)
        head = file.read(4)
        if head[:1] not in (b"\x08", b"\x09", b"\x12"):  # sound, picture, data
            break
        end += 11 + int.from_bytes(head[1:], "big") + 4
    return end


def _missing_of_ogg(file: BinaryIO, size: int) -> str:
    """`missing_part` of an Ogg file: its last page must be whole and marked as the last one."""
    file.seek(max(size - _LAST_PAGE, 0))
    tail = file.read()
    start = tail.rfind(b"OggS")
    page = tail[max(start, 0) :]
    segments = page[26] if len(page) > 26 else 0
    if len(page) < 27 + segments + sum(page[27 : 27 + segments]) or len(page) < 27:
        return "its last page is not whole"
    return "" if page[5] & _END_OF_STREAM else "no page of it is marked as the last"


def _end_of_mp3(file: BinaryIO) -> int:
    """The end of an MP3 file whose first frame has a Xing header (also called Info); 0 for all others."""
    file.seek(0)
    head = file.read(10)
    start = 0
    if head[:3] == b"ID3" and len(head) == 10:
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    file.seek(start)
    frame = file.read(64)
    if frame[:1] != b"\xff":
        return 0
    position = max(frame.find(b"Xing"), frame.find(b"Info"))
    if position < 0 or not frame[position + 7] & 2:  # whether it tells the number of bytes
        return 0
    counted = position + 8 + 4 * (frame[position + 7] & 1)
    return start + int.from_bytes(frame[counted : counted + 4], "big")
