"""Report on slides before they are processed."""

# SPDX-License-Identifier: BSD-3-Clause

import os
from contextlib import closing, suppress
from numbers import Integral

import pandas as pd
from sklearn.utils._param_validation import validate_params

from ..utils._parallel import LostWorkerError, map_tasks
from ..utils._reporting import progress
from ._tiler import SlideTiler, check_row, survey_slide, warn_repeated
from ._wsi._reader import open_slide, resolve_mpp, slide_info
from ._wsi._slide_files import is_tile_folder, slide_files

_COLUMNS = {
    "slide": object,
    "ok": bool,
    "reason": object,
    "vendor": object,
    "reader": object,
    "mpp": float,
    "objective_power": float,
    "width": "Int64",
    "height": "Int64",
    "n_levels": "Int64",
    "tissue_mm2": float,
    "ink_mm2": float,
    "n_tiles": "Int64",
    "size_bytes": "Int64",
}


def describe_slide(row, params, reader, header_only):
    """Return the row of the report on one slide."""
    found = {"slide": row.path, "reason": ""}
    with suppress(OSError, ValueError):
        if os.path.isfile(row.path):
            found["size_bytes"] = os.path.getsize(row.path)
        found["size_bytes"] = sum(map(os.path.getsize, slide_files(row.path)))
    try:
        if is_tile_folder(row.path):
            tiled = survey_slide(row, params, reader).tiled
            found |= {"vendor": "tile images", "reader": "pillow", "mpp": tiled.slide_mpp}
            found |= {"n_tiles": len(tiled), "ok": True}
            return found
        with open_slide(row.path, reader) as slide:
            # With any plausible um/px, so that the header of a slide without um/px is read too.
            info = slide_info(slide, row.path, 1.0)
            found |= {"vendor": slide.vendor or None, "reader": slide.library}
            found |= {"width": info.size[0], "height": info.size[1]}
            found |= {"n_levels": len(info.level_sizes), "objective_power": info.objective_power}
            found["mpp"] = resolve_mpp(row.path, slide.properties, row.mpp)
        check_row(row, params, reader)
        if not header_only:
            survey = survey_slide(row, params, reader)
            found |= {"tissue_mm2": survey.tissue_mm2, "ink_mm2": survey.ink_mm2}
            found |= {"n_tiles": len(survey.tiled)}
            reason = survey.tiled.reason
            found["reason"] = reason and f"Slide {row.path!r}: {reason}"
    except (OSError, ValueError) as error:
        found["reason"] = str(error)
    found["ok"] = not found["reason"]
    return found


@validate_params(
    {
        "X": "no_validation",
        "tiler": [SlideTiler, None],
        "header_only": ["boolean"],
        "n_jobs": [None, Integral],
        "verbose": ["verbose"],
    },
    prefer_skip_nested_validation=True,
)
def check_slides(X, *, tiler=None, header_only=False, n_jobs=None, verbose=0):
    """
    Report on slides: whether they can be tiled, into how many tiles, or why not.

    A bad slide is a row of the report and never raises an error.

    Parameters
    ----------
    X : list of path-like, Series, or DataFrame with the column ``slide``
        Slides, as for :class:`SlideTiler`, with the optional columns ``mpp`` and ``tissue``.
    tiler : SlideTiler, default=None
        How the slides are tiled; None stands for ``SlideTiler()``.
    header_only : bool, default=False
        Whether to skip the search for tissue. The search reads an overview of each slide, which
        takes about a second; opening a slide takes milliseconds.
    n_jobs : int, default=None
        Number of slides processed at the same time, as in joblib.
    verbose : int, default=0
        1 shows a progress bar, or lines in a log.

    Returns
    -------
    report : DataFrame of n_slides rows
        Index of X if it is a DataFrame or Series, and the columns:

        - ``slide``: path;
        - ``ok``: whether it has tiles (with `header_only`, whether it can be read);
        - ``reason``: why not, otherwise empty;
        - ``vendor``: format of the file; ``reader``: library that reads it;
        - ``mpp``: um/px of level 0, NaN if there is no plausible value;
        - ``objective_power``: magnification that the file states;
        - ``width``, ``height``: level-0 pixels; ``n_levels``: levels of the pyramid;
        - ``tissue_mm2``: area of the tissue mask in mm²;
        - ``ink_mm2``: area in mm² with the colour of ink, which the tissue masks leave out; look
          at slides with much of it. NaN if the mask is given or `header_only` is True;
        - ``n_tiles``: number of tiles on tissue, before at most `max_tiles` are drawn;
        - ``size_bytes``: size of the file, or of all files of the slide.

        Values that are not known are missing.

    Raises
    ------
    TypeError
        If X is not a list of paths.
    ValueError
        If X is empty or a parameter is wrong.

    See Also
    --------
    SlideTiler : Tiles the slides.
    sklearn_pk.plotting.SlideSheetDisplay : Plots tissue and tiles of many slides.

    Examples
    --------
    >>> from sklearn_pk.datasets import load_cmu_slide
    >>> from sklearn_pk.slides import check_slides
    >>> report = check_slides([load_cmu_slide().path, "missing.svs"])
    >>> report[["ok", "mpp", "width", "height", "n_levels", "n_tiles"]]
          ok    mpp  width  height  n_levels  n_tiles
    0   True  0.499   2220    2967         1       45
    1  False    NaN   <NA>    <NA>      <NA>     <NA>
    >>> report.reason[1].startswith("Slide not found: ")
    True
    """
    tiler = SlideTiler() if tiler is None else tiler
    tiler._validate_params()
    slides, params = tiler._check_slides(X), tiler._tiling_params()
    warn_repeated(slides)
    tasks = [(*tiler._make_absolute(row, params), tiler.reader, header_only) for row in slides]
    results = map_tasks(describe_slide, tasks, n_jobs=n_jobs, name=lambda at: slides[at].path)
    options = {"total": len(tasks), "desc": "Checking", "unit": "slide", "verbose": verbose}
    rows = [{}] * len(slides)
    with closing(results):
        for position, found in progress(results, **options):
            if isinstance(found, LostWorkerError):
                found = {"reason": str(found), "ok": False}
            rows[position] = found | {"slide": slides[position].path}
    index = X.index if isinstance(X, pd.DataFrame | pd.Series) else None
    columns = {
        name: pd.array([row.get(name, pd.NA) for row in rows], dtype=dtype)
        if dtype == "Int64"
        else [row.get(name) for row in rows]
        for name, dtype in _COLUMNS.items()
    }
    report = pd.DataFrame(columns, index=index)
    return report.astype({name: dtype for name, dtype in _COLUMNS.items() if dtype is float})
