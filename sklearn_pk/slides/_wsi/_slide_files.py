"""The files that belong to one slide: DICOM series, MIRAX, VMS, folders of tile images."""

# SPDX-License-Identifier: BSD-3-Clause

import configparser
import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from pydicom.datadict import tag_for_keyword
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial

from ._kinds import BFCONVERT, NO_STAIN, TO_EIGHT_BITS, UnsupportedKind
from ._tile_folder import find_tile_files

_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_TAGS = [
    tag_for_keyword(name)
    for name in ("ImageType", "SeriesInstanceUID", "SamplesPerPixel", "BitsAllocated")
]
# The transfer syntaxes that OpenSlide decodes: no compression, JPEG and JPEG 2000.
_SYNTAXES = {f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".4.50", ".4.90", ".4.91")}
_JPEG_LS = {f"1.2.840.10008.1.2{end}" for end in (".4.80", ".4.81")}
_BAD_DICOM = (InvalidDicomError, EOFError, ValueError, LookupError, TypeError, AttributeError)


class DicomHeader(NamedTuple):
    """What matters of the header of a DICOM file."""

    series: str  # None for files that belong to no series, such as DICOMDIR
    unsupported: tuple  # arguments of UnsupportedKind, empty for what OpenSlide reads


def file_state(path):
    """Return the resolved path of a file, its size, and what changes when it is replaced."""
    return _state_of(path, os.stat(path))


def _state_of(path, status):
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return os.path.realpath(path), status.st_size, *times, status.st_ino


@lru_cache(maxsize=65536)
def _read_dicom(path, size, *changes):
    """Read the header of a DICOM file; None for files of other kinds."""
    with open(path, "rb") as file:
        if file.read(132)[128:] != b"DICM":
            return None
        file.seek(0)
        try:
            # After group 0028 follows the description of each frame, which can be long.
            header = read_partial(
                file,
                stop_when=lambda tag, vr, length: tag >> 16 > 0x28,
                specific_tags=_TAGS,
            )
            sop_class = header.file_meta.MediaStorageSOPClassUID
            if sop_class != _WHOLE_SLIDE:
                kind = (f"a DICOM file of another kind ({sop_class.name})", None)
                return DicomHeader(header.get("SeriesInstanceUID"), kind)
            return DicomHeader(str(header["SeriesInstanceUID"].value), _find_kind(header))
        except _BAD_DICOM as error:
            raise ValueError(
                f"Slide is damaged or truncated: {path!r} is a DICOM file without a readable "
                f"header ({error}). Copy or download it again."
            ) from error


def _find_kind(header):
    """Describe the levels of a DICOM slide that OpenSlide does not read."""
    syntax = header.file_meta.TransferSyntaxUID
    samples, bits = header.get("SamplesPerPixel", 3), header.get("BitsAllocated", 8)
    if "VOLUME" not in header.get("ImageType", ["VOLUME"]):
        return ()  # labels and overviews are not read
    if samples != 3:
        return (f"a DICOM file of {samples} samples of {bits} bits per pixel", None, NO_STAIN)
    if bits != 8:
        command = f"{BFCONVERT} && {TO_EIGHT_BITS.format('OUT.ome.tiff')}"
        return (f"a DICOM file of 3 samples of {bits} bits per pixel", command)
    if syntax not in _SYNTAXES:
        command = "dcmdjpls" if syntax in _JPEG_LS else "gdcmconv --raw"
        return (f"a DICOM file compressed as {syntax.name}", f"{command} {{}} OUT.dcm")
    return ()


def _read_series(folder, skipped=()):
    """Return series -> the DICOM files of a folder; skip files with these errors."""
    series = {}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        with suppress(*skipped):
            if not entry.is_file():
                continue
            header = _read_dicom(*_state_of(entry.path, entry.stat()))
            if header is not None and header.series is not None:
                series.setdefault(header.series, []).append(entry.path)
    return series


def _named_files(path):
    """Return the files in the same folder that a VMS or VMU file names."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read(path, encoding="latin-1")
    except configparser.Error:
        return []  # OpenSlide says what is wrong with it.
    folder = Path(path).parent
    names = {name for section in parser.sections() for name in parser[section].values()}
    return sorted(str(folder / name) for name in names if name and (folder / name).is_file())


def _files_of_folder(folder):
    series = _read_series(folder)
    if len(series) > 1:
        firsts = [os.path.basename(files[0]) for files in series.values()]
        raise ValueError(
            f"Folder {folder!r} holds {len(series)} DICOM series, and each is a slide. Pass one "
            f"file of each, such as {firsts[:5]!r}."
        )
    return next(iter(series.values())) if series else find_tile_files(folder)


def slide_files(path):
    """Return the files that make up a slide, the one to be opened first."""
    path = os.fspath(path)
    if os.path.isdir(path):
        return _files_of_folder(path)
    ending, folder = os.path.splitext(path)[1].lower(), Path(path).with_suffix("")
    # MIRAX stores its pixels in a folder next to the file.
    if ending == ".mrxs":
        if not folder.is_dir():
            raise ValueError(
                f"MIRAX slide {path!r} has no pixels: they are in a folder {folder.name!r} next to "
                "it, which is missing. Copy it there."
            )
        return [path, *sorted(str(part) for part in folder.iterdir() if part.is_file())]
    if ending in (".vms", ".vmu"):
        return [path, *_named_files(path)]
    if os.path.exists(path) and not os.path.isfile(path):
        return [path]  # a pipe, which would be waited for
    header = _read_dicom(*file_state(path))
    if header is None or header.series is None:
        return [path]
    # Other slides in the folder may be damaged.
    others = _read_series(os.path.dirname(path) or ".", skipped=(OSError, ValueError))
    series = others.get(header.series, [])
    return [path, *(each for each in series if not os.path.samefile(each, path))]


def is_tile_folder(path):
    """Return whether a slide is given as a folder of tile images."""
    return os.path.isdir(path) and not _read_series(path)


def slide_state(path):
    """Return path, size, times and inode of all files of a slide."""
    return tuple(map(file_state, slide_files(path)))


def check_dicom(path):
    """Refuse a DICOM slide that OpenSlide does not read."""
    if _read_dicom(*file_state(path)) is None:
        return
    for each in slide_files(path):
        header = _read_dicom(*file_state(each))
        if header.unsupported:
            raise UnsupportedKind(*header.unsupported)
