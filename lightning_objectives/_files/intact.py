"""Whether a file is what it was when it was written."""

import zipfile
from pathlib import Path

_KNOWN = {
    b"version https://git-lfs": "It is a pointer of Git LFS and not the file itself: run `git lfs pull`.",
    b"<": "It is a web page, so the download went wrong: fetch it again.",
    b"PK\x03\x04": "It is a zip archive, as torch.save writes them: call it .ckpt or .pt.",
}
_CHUNK = 1 << 20


def check_sums(path: Path) -> None:
    """Compare what lies in a file of torch with the checksums in it, which ``torch.load`` leaves unread.

    Files from before torch 1.6, and those that were saved without checksums, have none to compare.

    Raises:
        ValueError: some differ.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.CRC == 0:  # empty, or saved under torch.serialization.set_crc32_options(False)
                    continue
                with archive.open(member) as data:
                    while data.read(_CHUNK):
                        pass
    except Exception as error:  # a header that is damaged may ask for anything: encryption, another compression, ...
        raise ValueError(f"{path} is damaged, its checksums do not agree: {error}") from error


def hint(path: Path) -> str:
    """What a file that cannot be read is instead, and what to do, as a sentence behind others; empty if not known."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError:
        return ""
    if not start:
        return " It is empty."
    for magic, sentence in _KNOWN.items():
        right = magic.startswith(b"PK") and path.suffix != ".safetensors"
        if start.lstrip().startswith(magic) and not right:
            return f" {sentence}"
    if start[8:9] == b"{" and path.suffix != ".safetensors":
        return " It is a safetensors file: call it .safetensors."
    return ""
