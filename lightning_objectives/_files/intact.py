"""Checks that a file is what it was when it was written, and says what it is instead."""

import zipfile
from pathlib import Path
from typing import BinaryIO

_OTHER_FILES = {
    b"version https://git-lfs": "It is a pointer of Git LFS and not the file itself: run `git lfs pull`.",
    b"<": "It is a web page, so the download went wrong: fetch it again.",
    b"PK\x03\x04": "It is a zip archive, as torch.save writes them: call it .ckpt or .pt.",
}
"""What to say of a file that begins with these bytes and cannot be read."""
_CHUNK = 1 << 20


def check_permission(path: Path) -> None:
    """Open a file and close it again, because safetensors reports a file that it may not open as missing.

    Raises:
        OSError: the system's own reason why the file cannot be opened.
    """
    path.open("rb").close()


def check_sums(path: Path, contents: BinaryIO | None = None) -> None:
    """Compare the contents of a file of torch with the checksums in it, which ``torch.load`` does not read.

    Files from before torch 1.6, and files that were saved without checksums, have none and pass.

    Args:
        path: the file.
        contents: the part of it to check; by default the whole file.

    Raises:
        ValueError: a checksum does not agree with the contents.
    """
    file = contents or path
    if not zipfile.is_zipfile(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if member.CRC == 0:  # empty, or saved under torch.serialization.set_crc32_options(False)
                    continue
                with archive.open(member) as data:
                    while data.read(_CHUNK):
                        pass
    except Exception as error:  # A damaged header may ask for anything: encryption, another compression, ...
        raise ValueError(f"{path} is damaged, its checksums do not agree: {error}") from error


def hint(path: Path) -> str:
    """Say what an unreadable file really is and what to do, as a sentence to append to an error; empty if unknown."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError:
        return ""
    if not start:
        return " It is empty."
    for magic, sentence in _OTHER_FILES.items():
        zip_of_torch = magic.startswith(b"PK") and path.suffix != ".safetensors"
        if start.lstrip().startswith(magic) and not zip_of_torch:
            return f" {sentence}"
    if start[8:9] == b"{" and path.suffix != ".safetensors":
        return " It is a safetensors file: call it .safetensors."
    return ""
