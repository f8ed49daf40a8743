"""read_features: existing features, from one file or from a folder."""

# SPDX-License-Identifier: BSD-3-Clause

import html
import warnings
from collections import Counter
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from numbers import Integral
from pathlib import Path

import numpy as np
import pandas as pd

from .._encoders._registry import spelled
from .._inputs import failures_frame
from ._array_files import ARRAY_ENDINGS, NoTileFeatures, ending_of, stem_of
from ._feature_bag import FeatureBag, FileBag, PatientBag
from ._formats import REFUSED_ENDINGS, open_features
from ._store import file_name, write_bag

_SHOWN = 10  # bags
_HDF5_ENDINGS = {".h5", ".hdf5"}
_EXPECTED = "files of features (*.h5, *.pt, *.safetensors, *.npy, *.npz, *.csv or *.parquet)"
# Files of another width than the others are left out if they are at most this fraction.
_FEW = 0.05


class FeatureBags(list):
    """
    The feature bags of a cohort, as :func:`read_features` finds them in a folder.

    A list of :class:`FeatureBag` with the names of its slides and the files that failed.

    Parameters
    ----------
    bags : iterable of FeatureBag, default=()
        The bags.
    failures : DataFrame with the columns ``slide`` and ``reason``, default=None
        Files that were left out.

    Attributes
    ----------
    names : list of str
        Name of each slide, to find its row of expression.
    failures : DataFrame with the columns ``slide`` and ``reason``
        Path of each file that was left out, and why.

    See Also
    --------
    read_features : Makes it.
    FeatureBag : One of its elements.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_pk.slides import FeatureBag, FeatureBags
    >>> bags = FeatureBags([FeatureBag(np.ones((5, 8)), slide="a.svs")])
    >>> bags, bags.names, len(bags.failures)
    (FeatureBags(1 slide, 8 features, 0 failures), ['a'], 0)
    """

    def __init__(self, bags=(), failures=None):
        super().__init__(bags)
        self.failures = failures_frame([]) if failures is None else failures

    @property
    def names(self):
        """Name of each slide."""
        return [bag.name for bag in self]

    def by_patient(self, patients):
        """
        Join the bags of each patient.

        Parameters
        ----------
        patients : array-like of shape (n_slides,), mapping or Series
            Patient of each bag, in order, or a mapping from names of slides to patients.

        Returns
        -------
        bags : FeatureBags
            One bag per patient, in the order of first appearance, with the patient as its name.
            Features stay in their files. Each bag has the attributes ``slides``, the names of
            its slides, and ``slide_of_tile``, the number of the slide of each tile, besides the
            coordinates of all tiles; coordinates of different slides may be equal.

        Raises
        ------
        ValueError
            If patients are missing or of another number than the bags, or if slides of a
            patient differ in their number of features.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn_pk.slides import FeatureBag, FeatureBags
        >>> names = ["A-1.svs", "A-2.svs", "B-1.svs"]
        >>> bags = FeatureBags(FeatureBag(np.ones((5, 8)), slide=name) for name in names)
        >>> joined = bags.by_patient(["A", "A", "B"])
        >>> joined.names, joined[0].shape, joined[0].slides
        (['A', 'B'], (10, 8), ('A-1', 'A-2'))
        """
        if isinstance(patients, Mapping | pd.Series) and not set(self.names) <= set(patients):
            unknown = [name for name in self.names if name not in patients]
            if isinstance(patients, Mapping) or len(patients) != len(self):
                raise ValueError(
                    f"patients: no patient for {len(unknown)} of {len(self)} slides, such as "
                    f"{unknown[0]!r}. Pass one for each slide."
                )
            patients = patients.to_list()
        elif isinstance(patients, Mapping | pd.Series):
            patients = [patients[name] for name in self.names]
        patients = list(patients)
        if len(patients) != len(self):
            raise ValueError(
                f"patients: got {len(patients)} for {len(self)} bags; expected one for each bag."
            )
        parts = {}
        for patient, bag in zip(patients, self, strict=True):
            if pd.isna(patient) or str(patient).strip() == "":
                raise ValueError(
                    f"patients: the patient of slide {bag.name!r} is missing, got {patient!r}."
                )
            parts.setdefault(str(patient), []).append(bag)
        return FeatureBags(map(PatientBag, parts, parts.values()), self.failures)

    def to_store(self, folder):
        """
        Write the features to files in the format of the feature store.

        Files of other tools have no checksums, so damage to them can go unnoticed or crash the
        HDF5 library. The files of the store have.

        Parameters
        ----------
        folder : str or path-like
            Folder for one HDF5 file per slide, named after the slide.

        Returns
        -------
        bags : FeatureBags
            The bags of the new files, which are read on demand.

        Raises
        ------
        OSError
            If a file cannot be written.
        ValueError
            If names of slides are empty or not unique, or the file of a bag is damaged.

        Examples
        --------
        >>> import numpy as np
        >>> from tempfile import TemporaryDirectory
        >>> from sklearn_pk.slides import FeatureBag, FeatureBags
        >>> bags = FeatureBags([FeatureBag(np.ones((5, 8)), slide="a.svs")])
        >>> with TemporaryDirectory() as folder:
        ...     bags.to_store(folder)
        FeatureBags(1 slide, 8 features, 0 failures)
        """
        for name, count in Counter(self.names).items():
            if not name or count > 1:
                raise ValueError(f"{count} bags have the slide {name!r}; expected unique names.")
        paths = [Path(folder) / file_name(name, ".h5") for name in self.names]
        for path, bag in zip(paths, self, strict=True):
            write_bag(path, bag)
        return FeatureBags(map(FeatureBag.from_file, paths))

    def _repr_html_(self):
        """Show the first bags as a table, escaped."""
        table = pd.DataFrame([bag._describe() for bag in self[:_SHOWN]])
        shown = f"<p>The first {_SHOWN} are shown.</p>" if len(self) > _SHOWN else ""
        return f"<p>{html.escape(repr(self))}</p>{table.to_html(index=False, na_rep='')}{shown}"

    def __repr__(self):
        """Count slides and failures."""
        slides = f"{len(self)} slide{'' if len(self) == 1 else 's'}"
        width = f"{self[0].shape[1]} features, " if self else ""
        return f"FeatureBags({slides}, {width}{len(self.failures)} failures)"


def read_features(
    path,
    *,
    features=None,
    encoder=None,
    weights_hash=None,
    tile_mpp=None,
    mpp=None,
    min_tiles=1,
    errors="skip",
):
    """
    Read tile features from a file, or from all files in a folder.

    Reads the files of the feature store and those of TRIDENT, CLAM, STAMP, SEQUOIA and PRALINE,
    and files of arrays with one slide each: torch, safetensors, numpy, csv and parquet. A cohort
    may be larger than memory: the features of each slide are read whenever its bag is accessed.

    Parameters
    ----------
    path : str or path-like
        HDF5 file; torch file (``.pt``) with a tensor or with ``{"features": ..., "coords": ...}``;
        safetensors, ``.npy`` or ``.npz`` file; table (``.csv``, ``.tsv``, ``.parquet``) with one
        row per tile and numbered columns, such as ``feature_0``, and coordinates as ``x`` and
        ``y``; ``.zarr`` store of LazySlide (SpatialData) or AnnData, which needs the package
        zarr; or a folder with such files at any depth.
    features : str, default=None
        Name of the array that holds the features; in tables, what stands before the numbers of
        its columns; in Zarr, the table. None takes ``features`` (the store, TRIDENT,
        CLAM), ``feats`` (STAMP), or ``uni_features`` or ``resnet_features`` (SEQUOIA); else the
        means of clusters, ``cluster_features`` (SEQUOIA) or ``cluster_mean_features`` (PRALINE).
    encoder : str, default=None
        Read only the features of this encoder. For folders with the features of several. The
        spellings of :func:`list_encoders` are taken for the same: ``uni_v1`` is ``uni``.
    weights_hash : str, default=None
        Read only features that were computed with these weights, given by the beginning of their
        hash.
    tile_mpp : float, default=None
        Read only tiles of this resolution in um/px. Of TRIDENT's files it is 10 divided by their
        magnification.
    mpp : float, mapping or Series, default=None
        Resolution of level 0 in um/px, or a mapping from names of slides to resolutions. It
        converts coordinates in um (STAMP) to level-0 pixels; without it, such bags have no
        coordinates.
    min_tiles : int, default=1
        Slides of a folder with fewer tiles are left out.
    errors : {"skip", "raise"}, default="skip"
        What to do about files of a folder that cannot be used: "skip" warns and lists them in
        `failures`; "raise" names all of them. These are files that cannot be read, have fewer
        than `min_tiles` tiles, are copies of another one of the same slide, or are the few (5 %,
        at least one) of another width than the others. A single file that cannot be read
        always raises.

    Returns
    -------
    bags : FeatureBag, or FeatureBags
        The bag of a file, or the list of those in a folder, sorted by path. Bags are backed by
        their files.

    Raises
    ------
    FileNotFoundError
        If there is no such file or folder.
    PermissionError
        If a file cannot be opened.
    TypeError
        If `mpp` is of another type.
    ValueError
        If a file does not hold features, is damaged, or can hold code (pickles are never
        loaded), if a folder has no file of features, if its files are of several encoders,
        weights, resolutions or widths, or if several are of one slide and differ.

    See Also
    --------
    FoundationFeaturizer : Writes such files.
    FeatureBag.from_file : Makes a bag of one file.
    SuperTileClusterer : Reads bags one by one.

    Notes
    -----
    Of files other than HDF5, ``.npz`` and tables are read completely to know their shape. A
    ``.pt`` file is skipped where an HDF5 file of the same name can be read, as in the
    folders of CLAM; so are files that hold coordinates only, and those with the features of
    whole slides in TRIDENT's folders ``slide_features_*``. Whether features are finite is checked
    by the estimator that reads them.

    Of an HDF5 file, only the data sets named above are read, and only if their values are in the
    file itself and their size fits the file. The files of the store have checksums. Those of
    other tools usually have none: a truncated file is refused, but flipped bits can give wrong
    features or crash the HDF5 library. Open only files that you trust;
    :meth:`FeatureBags.to_store` copies them into files with checksums.

    Examples
    --------
    >>> import h5py, numpy as np
    >>> from tempfile import TemporaryDirectory
    >>> from sklearn_pk.slides import read_features
    >>> with TemporaryDirectory() as folder:
    ...     for number, name in enumerate("ab"):
    ...         with h5py.File(f"{folder}/{name}.h5", "w") as file:
    ...             file["features"] = np.full((5, 8), number, dtype=np.float32)
    ...     bags = read_features(folder)
    ...     bags.names, bags[0].shape, read_features(f"{folder}/a.h5").features.dtype
    (['a', 'b'], (5, 8), dtype('float32'))
    """
    if errors not in ("skip", "raise"):
        raise ValueError(f"errors must be 'skip' or 'raise', got {errors!r}.")
    if not isinstance(min_tiles, Integral) or isinstance(min_tiles, bool) or min_tiles < 0:
        raise ValueError(f"min_tiles must be a whole number of at least 0, got {min_tiles!r}.")
    path = Path(path)
    chosen = {"encoder": encoder, "weights_hash": weights_hash, "tile_mpp": tile_mpp}
    if not path.is_dir() or _is_zarr(path):
        file = open_features(path, features=features, mpp=mpp)
        _keep_chosen(path, [file], **chosen)
        _warn_coords_in_um([file])
        return FileBag(file)
    files, failures = _open_all(path, features, mpp)
    if failures and not files:
        raise _unusable(path, failures, len(files))
    # The encoder of a file that cannot be read is unknown, so all files count.
    n_found = len(failures) + len(files)
    files = _keep_chosen(path, files, **chosen)
    for leave_out in (_leave_out_widths, partial(_leave_out_small, min_tiles), _leave_out_copies):
        files, reasons = leave_out(files)
        failures += reasons
    failures = sorted(failures)
    if failures and (errors == "raise" or not files):
        raise _unusable(path, failures, len(files))
    _check_one_kind(path, files)
    _check_one_file_per_slide(path, files)
    bags = FeatureBags(map(FileBag, files), failures_frame(failures))
    if failures:
        warnings.warn(
            f"{len(failures)} of {n_found} files could not be used; the first: "
            f"{failures[0][1]} See failures for all.",
            UserWarning,
            stacklevel=2,
        )
    _warn_copies(files)
    _warn_coords_in_um(files)
    return bags


def _open_all(folder, features, mpp):
    """Open all files of features in a folder; others only where there is no HDF5 file."""
    files, failures, skipped = {}, [], Counter()
    candidates = _find_files(folder)
    for path in sorted(candidates, key=lambda path: (_is_array(path), path)):
        if _is_array(path) and not files.keys().isdisjoint(_hdf5_counterparts(path)):
            continue
        try:
            files[path] = open_features(path, features=features, mpp=mpp)
        except NoTileFeatures as reason:
            skipped[reason.what] += 1
        except (OSError, ValueError) as error:
            failures.append((str(path), str(error)))
    if not files and not failures:
        found = " and ".join(f"{n} files with {what}" for what, n in skipped.items()) or "none"
        raise ValueError(f"{str(folder)!r}: expected {_EXPECTED}, found {found}.")
    return [files[path] for path in sorted(files)], sorted(failures)


def _find_files(folder):
    endings = {*_HDF5_ENDINGS, *REFUSED_ENDINGS}
    return [
        path
        for path in folder.rglob("*")
        if (ending_of(path) or path.suffix.lower() in endings)
        and not _is_hidden(path.name)
        and not any(map(_is_zarr, path.relative_to(folder).parents))
        and (path.is_file() or _is_zarr(path))
    ]


def _is_zarr(path):
    """Return whether a folder is one file of features."""
    return ending_of(path) == ".zarr"


def _is_hidden(name):
    """Return whether a file is one of the system, such as those of macOS beside each file."""
    return name.startswith("._") or (name.startswith(".") and name.endswith(".tmp"))


def _is_array(path):
    return ending_of(path) in ARRAY_ENDINGS


def _hdf5_counterparts(path):
    """Return possible HDF5 files of the same features; CLAM has a folder per format."""
    folders = [path.parent]
    if path.parent.name == "pt_files":
        folders.append(path.parent.with_name("h5_files"))
    return [folder / f"{stem_of(path)}{ending}" for folder in folders for ending in _HDF5_ENDINGS]


def _unusable(folder, failures, n_read):
    lines = "\n".join(f"- {reason}" for _, reason in failures[:10])
    if len(failures) > 10:
        lines += f"\n- and {len(failures) - 10} more"
    return ValueError(
        f"{str(folder)!r}: {len(failures)} of {len(failures) + n_read} files could not be "
        f"used:\n{lines}"
    )


def _resolution(file):
    """Return the um/px of the tiles of a file, None where it is not stated."""
    return 10 / file.magnification if file.mpp is None and file.magnification else file.mpp


def _keep_chosen(path, files, encoder, weights_hash, tile_mpp):
    """Keep the files of an encoder, of weights and of a resolution."""
    tests = {
        "encoder": (encoder, lambda file: spelled(file.encoder) == spelled(encoder)),
        "weights_hash": (weights_hash, lambda file: file.weights_hash.startswith(weights_hash)),
        "tile_mpp": (tile_mpp, lambda file: _agrees(_resolution(file), tile_mpp)),
    }
    read = {
        "encoder": lambda file: file.encoder,
        "weights_hash": lambda file: file.weights_hash[:12],
        "tile_mpp": _resolution,
    }
    for name, (value, test) in tests.items():
        if value is None:
            continue
        kept = [file for file in files if test(file)]
        if not kept:
            found = sorted({str(read[name](file) or "not stated") for file in files})
            raise ValueError(
                f"{str(path)!r}: no features of the {name.replace('_', ' ')} {value!r}; found: "
                f"{', '.join(found)}."
            )
        files = kept
    return files


def _agrees(found, expected):
    return found is not None and abs(found / expected - 1) < 0.02


def _leave_out_widths(files):
    """Leave out the few files of another width than the others of the same encoder."""
    counts = Counter(file.shape[1] for file in files)
    width, most = counts.most_common(1)[0]
    few = [file for file in files if file.shape[1] != width]
    usual = {(file.encoder, file.weights_hash) for file in files if file.shape[1] == width}
    is_stray = {(file.encoder, file.weights_hash) for file in few} <= usual
    if not few or not is_stray or most < 2 or len(few) > max(1, _FEW * len(files)):
        return files, []
    reasons = [
        (file.path, f"{file.path!r} has {file.shape[1]} features, {most} others have {width}.")
        for file in few
    ]
    return [file for file in files if file.shape[1] == width], reasons


def _leave_out_small(min_tiles, files):
    reasons = [
        (file.path, f"{file.path!r} has {file.shape[0]} tiles, fewer than min_tiles={min_tiles}.")
        for file in files
        if file.shape[0] < min_tiles
    ]
    return [file for file in files if file.shape[0] >= min_tiles], reasons


def _leave_out_copies(files):
    """Leave out files that equal another one of the same slide."""
    kept, reasons = {}, []
    for file in files:
        name = FileBag(file).name
        first = kept.setdefault(name, file)
        if first is not file and _are_copies(first, file):
            reasons.append((file.path, f"{file.path!r} is a copy of {first.path!r}."))
        elif first is not file:
            kept[file.path] = file
    return sorted(kept.values(), key=lambda file: Path(file.path)), reasons


def _are_copies(first, second):
    """Return whether two files hold equal features."""
    if first.shape != second.shape:
        return False
    if first.key and second.key:
        return first.key == second.key
    return np.array_equal(first.read_features(), second.read_features())


def _warn_copies(files):
    """Warn about slides under several names, which may come to both sides of a fold."""
    same = {}
    for file in files:
        same.setdefault(file.key or file.shape, []).append(file)
    alike = {}
    for kind, group in same.items():
        for file in group if len(group) > 1 else ():
            first = file.read_first() if file.shape[0] and not file.key else b""
            alike.setdefault((kind, first), []).append(file)
    pairs = [
        (first, second)
        for group in alike.values()
        for first, second in pairwise(group)
        if first.shape[0] and _are_copies(first, second)
    ]
    if pairs:
        first, second = (file.path for file in pairs[0])
        warnings.warn(
            f"{len(pairs)} files hold the same features as another one under another name, such "
            f"as {second!r} and {first!r}. Keep one of them, or give both the same patient: the "
            "copies of a slide must not be split between training and test.",
            UserWarning,
            stacklevel=3,
        )


def _check_one_kind(folder, files):
    """Refuse files of several encoders, weights, resolutions or widths."""

    def kind(file):
        resolution = _resolution(file)
        return (
            spelled(file.encoder),
            file.weights_hash,
            None if resolution is None else float(f"{resolution:.2g}"),
            file.shape[1],
        )

    kinds = Counter(map(kind, files))
    if len(kinds) == 1:
        return
    examples = {kind(file): file.path for file in reversed(files)}
    lines = "\n".join(
        f"- {_describe_kind(*each)}: {count} files, such as {examples[each]!r}"
        for each, count in kinds.most_common()
    )
    raise ValueError(
        f"{str(folder)!r} holds features of several encoders, weights, resolutions or widths:\n"
        f"{lines}\nChoose one with encoder=, weights_hash= or tile_mpp=, or read its folder alone."
    )


def _describe_kind(encoder, weights_hash, resolution, width):
    stated = [encoder or "encoder not stated", f"{width} features"]
    stated += [f"weights {weights_hash[:12]}" if weights_hash else "weights not stated"]
    stated += ["um/px not stated" if resolution is None else f"{resolution:g} um/px"]
    return ", ".join(stated)


def _check_one_file_per_slide(folder, files):
    """Refuse several files of one slide."""
    seen = {}
    for file in files:
        name = FileBag(file).name
        if name in seen:
            raise ValueError(
                f"{str(folder)!r} holds two files of slide {name!r}: {seen[name]!r} and "
                f"{file.path!r}. Keep one of them; in a store, they differ by tiling, weights or "
                "the version of the format."
            )
        seen[name] = file.path


def _warn_coords_in_um(files):
    n_files = sum(file.coords_in_um for file in files)
    if n_files:
        warnings.warn(
            f"The coordinates of {n_files} files are in um and were left out; the first is "
            f"{next(file.path for file in files if file.coords_in_um)!r}. Pass mpp= (um/px of "
            "level 0) to have them in level-0 pixels.",
            UserWarning,
            stacklevel=3,
        )
