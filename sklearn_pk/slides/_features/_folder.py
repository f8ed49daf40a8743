"""read_features: existing features, from one file or from a folder."""

# SPDX-License-Identifier: BSD-3-Clause

import warnings
from collections import Counter
from pathlib import Path

from .._inputs import failures_frame
from ._feature_bag import FeatureBag, FileBag
from ._formats import REFUSED_ENDINGS, TORCH_ENDINGS, NoTileFeatures, open_features
from ._store import write_bag

_HDF5_ENDINGS = {".h5", ".hdf5"}
_EXPECTED = "files of features (*.h5, *.hdf5 or *.pt)"


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
        Path of each file that could not be read, and why.

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
        paths = [Path(folder) / f"{name}.h5" for name in self.names]
        for path, bag in zip(paths, self, strict=True):
            write_bag(path, bag)
        return FeatureBags(map(FeatureBag.from_file, paths))

    def __repr__(self):
        """Count slides and failures."""
        slides = f"{len(self)} slide{'' if len(self) == 1 else 's'}"
        width = f"{self[0].shape[1]} features, " if self else ""
        return f"FeatureBags({slides}, {width}{len(self.failures)} failures)"


def read_features(path, *, features=None, encoder=None, mpp=None, errors="skip"):
    """
    Read tile features from a file, or from all files in a folder.

    Reads the files of the feature store and those of TRIDENT, CLAM, STAMP, SEQUOIA and PRALINE.
    Only their headers are read here, so a cohort may be larger than memory: the features of
    each slide are read whenever its bag is accessed.

    Parameters
    ----------
    path : str or path-like
        HDF5 file, torch file (``.pt``) with a tensor, or folder with such files at any depth.
    features : str, default=None
        Data set that holds the features. None takes ``features`` (the store, TRIDENT,
        CLAM), ``feats`` (STAMP), or ``uni_features`` or ``resnet_features`` (SEQUOIA); else the
        means of clusters, ``cluster_features`` (SEQUOIA) or ``cluster_mean_features`` (PRALINE).
    encoder : str, default=None
        Read only the features of this encoder, as the files state it. For folders with the
        features of several.
    mpp : float, mapping or Series, default=None
        Resolution of level 0 in um/px, or a mapping from names of slides to resolutions. It
        converts coordinates in um (STAMP) to level-0 pixels; without it, such bags have no
        coordinates.
    errors : {"skip", "raise"}, default="skip"
        What to do about files of a folder that cannot be read: "skip" warns and lists them in
        `failures`; "raise" names all of them. A single file that cannot be read always raises.

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
        loaded), if a folder has no file of features, if its files are of several encoders or
        widths, or if several are of one slide.

    See Also
    --------
    FoundationFeaturizer : Writes such files.
    FeatureBag.from_file : Makes a bag of one file.
    SuperTileClusterer : Reads bags one by one.

    Notes
    -----
    A ``.pt`` file is skipped where an HDF5 file of the same name can be read, as in the
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
    ...     for name in "ab":
    ...         with h5py.File(f"{folder}/{name}.h5", "w") as file:
    ...             file["features"] = np.zeros((5, 8), dtype=np.float32)
    ...     bags = read_features(folder)
    ...     bags.names, bags[0].shape, read_features(f"{folder}/a.h5").features.dtype
    (['a', 'b'], (5, 8), dtype('float32'))
    """
    if errors not in ("skip", "raise"):
        raise ValueError(f"errors must be 'skip' or 'raise', got {errors!r}.")
    path = Path(path)
    if not path.is_dir():
        file = open_features(path, features=features, mpp=mpp)
        _keep_encoder(path, [file], encoder)
        _warn_coords_in_um([file])
        return FileBag(file)
    files, failures = _open_all(path, features, mpp)
    if failures and (errors == "raise" or not files):
        raise _unreadable(path, failures, len(files))
    # The encoder of a file that cannot be read is unknown, so all files count.
    n_found = len(failures) + len(files)
    files = _keep_encoder(path, files, encoder)
    _check_one_encoder(path, files)
    _check_one_file_per_slide(path, files)
    bags = FeatureBags(map(FileBag, files), failures_frame(failures))
    if failures:
        warnings.warn(
            f"{len(failures)} of {n_found} files could not be read; the first: "
            f"{failures[0][1]} See failures for all.",
            UserWarning,
            stacklevel=2,
        )
    _warn_coords_in_um(files)
    return bags


def _open_all(folder, features, mpp):
    """Open all files of features in a folder; torch files only where there is no HDF5 file."""
    files, failures, skipped = {}, [], Counter()
    candidates = _find_files(folder)
    for path in sorted(candidates, key=lambda path: (_is_torch(path), path)):
        if _is_torch(path) and not files.keys().isdisjoint(_hdf5_counterparts(path)):
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
    endings = {*_HDF5_ENDINGS, *TORCH_ENDINGS, *REFUSED_ENDINGS}
    return [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in endings and not path.name.startswith(".") and path.is_file()
    ]


def _is_torch(path):
    return path.suffix.lower() in TORCH_ENDINGS


def _hdf5_counterparts(path):
    """Return possible HDF5 files of the same features; CLAM has a folder per format."""
    folders = [path.parent]
    if path.parent.name == "pt_files":
        folders.append(path.parent.with_name("h5_files"))
    return [folder / f"{path.stem}{ending}" for folder in folders for ending in _HDF5_ENDINGS]


def _unreadable(folder, failures, n_read):
    lines = "\n".join(f"- {reason}" for _, reason in failures[:10])
    if len(failures) > 10:
        lines += f"\n- and {len(failures) - 10} more"
    return ValueError(
        f"{str(folder)!r}: {len(failures)} of {len(failures) + n_read} files could not be "
        f"read:\n{lines}"
    )


def _keep_encoder(path, files, encoder):
    kept = [file for file in files if encoder is None or file.encoder == encoder]
    if not kept:
        found = sorted({file.encoder or "not stated" for file in files})
        raise ValueError(
            f"{str(path)!r}: no features of the encoder {encoder!r}; found: {', '.join(found)}."
        )
    return kept


def _check_one_encoder(folder, files):
    """Refuse files of several encoders or widths."""
    kinds = Counter((file.encoder, file.shape[1]) for file in files)
    if len(kinds) == 1:
        return
    examples = {(file.encoder, file.shape[1]): file.path for file in reversed(files)}
    lines = "\n".join(
        f"- {kind[0] or 'encoder not stated'}, {kind[1]} features: {count} files, such as "
        f"{examples[kind]!r}"
        for kind, count in kinds.most_common()
    )
    raise ValueError(
        f"{str(folder)!r} holds features of several encoders or widths:\n{lines}\n"
        "Choose one with encoder=, or read its folder alone."
    )


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
