"""Cohorts of slide files with a planted, known relation to expression."""

# SPDX-License-Identifier: BSD-3-Clause

import os
from functools import lru_cache
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import tifffile
from scipy import ndimage
from sklearn.cluster import KMeans
from sklearn.utils import Bunch, check_random_state
from sklearn.utils._param_validation import Interval, validate_params
from sklearn.utils.parallel import Parallel, delayed

from ..utils._reporting import progress
from ._expression_cohort import draw_patients, name_slides
from ._loaders import load_brca_expression, load_cmu_slide

_MPP = 0.5
_PATCH = 128
_STRIDE = 32
_TEXTURE_NAMES = ("keratin_rich", "epithelium", "cellular_stroma", "collagen")
_DESCR = """\
Composed H&E slides with planted expression
===========================================

Tiled, pyramidal JPEG TIFF files at 0.5 um/px, made of patches of the real slide CMU-1 (see
load_cmu_slide): tissue on background. The fraction of each of four textures in the tissue depends
on the leading principal components of real expression (see load_brca_expression), plus noise, so
that a gene can be predicted from the slides as far as these components explain it. The slides
contain no other information about the expression.
"""


def patch_colors(patches):
    """Return mean and standard deviation of the optical density of patches per channel."""
    table = -np.log10((np.arange(256) + 1) / 256)
    # Counting values is faster than averaging pixels.
    counts = np.array(
        [
            [np.bincount(patch[..., channel].ravel(), minlength=256) for channel in range(3)]
            for patch in patches
        ]
    )
    fractions = counts / counts.sum(axis=-1, keepdims=True)
    means = fractions @ table
    spreads = np.sqrt(np.maximum(fractions @ np.square(table) - np.square(means), 0))
    return np.concatenate([means, spreads], axis=1)


@lru_cache(maxsize=1)
def texture_library():
    """Cut the shipped slide into patches and cluster them into textures."""
    with openslide.OpenSlide(load_cmu_slide().path) as slide:
        image = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    red, green, blue = (image[..., channel].astype(np.int16) for channel in range(3))
    brightest, darkest = np.maximum(np.maximum(red, green), blue), np.minimum(red, green)
    colored = brightest - np.minimum(darkest, blue) > 20
    windows = np.lib.stride_tricks.sliding_window_view
    rows, columns = (length // _STRIDE for length in colored.shape)
    blocks = colored[: rows * _STRIDE, : columns * _STRIDE].reshape(rows, _STRIDE, columns, _STRIDE)
    span = _PATCH // _STRIDE
    coverage = windows(blocks.mean(axis=(1, 3)), (span, span)).mean(axis=(2, 3))
    patches = windows(image, (_PATCH, _PATCH), axis=(0, 1))[::_STRIDE, ::_STRIDE]
    patches = patches[: len(coverage), : coverage.shape[1]].transpose(0, 1, 3, 4, 2)
    tissue, background = patches[coverage > 0.85], patches[::4, ::4][coverage[::4, ::4] < 0.002]
    colors = patch_colors(tissue)
    colors = (colors - colors.mean(axis=0)) / colors.std(axis=0)
    kinds = KMeans(len(_TEXTURE_NAMES), n_init=10, random_state=0).fit_predict(colors)
    textures = [tissue[kinds == kind] for kind in range(len(_TEXTURE_NAMES))]
    return sorted(textures, key=lambda patches: patches.mean()), background


def draw_layout(composition, shape, random_state):
    """Draw the texture of each patch of a slide, -1 for background."""
    rows, columns = np.indices(shape)
    center = [(size - 1) / 2 for size in shape]
    radius = np.hypot((rows - center[0]) / (shape[0] / 2), (columns - center[1]) / (shape[1] / 2))
    bumps = ndimage.gaussian_filter(random_state.normal(size=shape), 2.0)
    tissue = radius + 0.25 * bumps / bumps.std() < 0.95
    tissue[shape[0] // 2, shape[1] // 2] = True
    field = ndimage.gaussian_filter(random_state.normal(size=shape), 1.5)[tissue]
    ranks = (np.argsort(np.argsort(field)) + 0.5) / len(field)
    layout = np.full(shape, -1)
    layout[tissue] = np.searchsorted(np.cumsum(composition)[:-1], ranks)
    return layout


def compose_slide(composition, size, seed):
    """Compose the pixels of a slide from the texture library."""
    random_state = np.random.RandomState(seed)
    textures, background = texture_library()
    shape = tuple(-(-length // _PATCH) for length in size[::-1])
    layout = draw_layout(composition, shape, random_state)
    image = np.empty((shape[0] * _PATCH, shape[1] * _PATCH, 3), dtype=np.uint8)
    for row, column in np.ndindex(shape):
        kind = layout[row, column]
        source = background if kind < 0 else textures[kind]
        patch = source[random_state.randint(len(source))]
        patch = np.rot90(patch, random_state.randint(4))
        if random_state.randint(2):
            patch = patch[::-1]
        image[row * _PATCH : (row + 1) * _PATCH, column * _PATCH : (column + 1) * _PATCH] = patch
    return image[: size[1], : size[0]]


def write_slide(path, image, mpp):
    """Write a tiled, pyramidal JPEG TIFF with its resolution, for OpenSlide."""
    path = Path(path)
    temporary = path.with_suffix(f".tmp{os.getpid()}")
    with tifffile.TiffWriter(temporary) as file:
        level = 0
        while level == 0 or min(image.shape[:2]) >= 256:
            pixels_per_cm = 1e4 / (mpp * 2**level)
            file.write(
                image,
                tile=(256, 256),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 85},
                resolution=(pixels_per_cm, pixels_per_cm),
                resolutionunit="CENTIMETER",
                subfiletype=int(level > 0),
                metadata=None,
            )
            even = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2].astype(np.uint16)
            image = even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]
            image = ((image + 2) // 4).astype(np.uint8)
            level += 1
    os.replace(temporary, path)


def _compose_and_write(path, composition, size, seed):
    write_slide(path, compose_slide(composition, size, seed), _MPP)


def principal_scores(expression, n_components):
    """Compute the leading principal component scores, each with unit variance."""
    centered = expression.to_numpy() - expression.to_numpy().mean(axis=0)
    left, _, loadings = np.linalg.svd(centered, full_matrices=False)
    loadings = loadings[:n_components]
    largest = np.abs(loadings).argmax(axis=1)
    signs = np.sign(loadings[np.arange(n_components), largest])
    return left[:, :n_components] * signs * np.sqrt(len(expression))


def explained_fraction(expression, scores):
    """Compute the fraction of each gene's variance explained by linear functions of scores."""
    centered = expression - expression.mean(axis=0)
    basis, _ = np.linalg.qr(scores - scores.mean(axis=0))
    total = np.square(centered).sum(axis=0)
    explained = np.square(basis.T @ centered).sum(axis=0)
    return np.divide(explained, total, out=np.zeros_like(total), where=total > 0)


@validate_params(
    {
        "n_slides": [Interval(Integral, 2, None, closed="left")],
        "random_state": ["random_state"],
        "out_dir": [str, os.PathLike],
        "slide_size": [tuple, list],
        "strength": [Interval(Real, 0, None, closed="left")],
        "noise": [Interval(Real, 0, None, closed="left")],
        "two_slide_share": [Interval(Real, 0, 1, closed="both")],
        "n_jobs": [Integral, None],
        "verbose": ["verbose"],
    },
    prefer_skip_nested_validation=True,
)
def make_slide_cohort(
    n_slides=60,
    *,
    random_state=None,
    out_dir,
    slide_size=(2048, 2048),
    strength=1.0,
    noise=0.2,
    two_slide_share=0.2,
    n_jobs=None,
    verbose=0,
):
    """
    Generate slide files of real H&E texture whose composition depends on real expression.

    Each patient gets one row of :func:`load_brca_expression` and a mixture of four
    tissue textures of :func:`load_cmu_slide`. The log ratios of the mixture are the
    first three principal components of the expression, plus noise. The slides are
    files, the expression has real co-expression, and their relation is known.

    Parameters
    ----------
    n_slides : int, default=60
        Number of slides.
    random_state : int, RandomState instance or None, default=None
        Generator of patients, mixtures and pixels. Pass an int for reproducible files.
    out_dir : str or path-like
        Folder for the files; it is created if missing. Files of the same
        name are replaced.
    slide_size : tuple of int, default=(2048, 2048)
        Width and height of level 0 in px, at 0.5 um/px; at least 512 each.
    strength : float, default=1.0
        Effect of the expression on the mixture; 0 plants nothing.
    noise : float, default=0.2
        Standard deviation of the noise of the log ratios of each slide.
    two_slide_share : float, default=0.2
        Fraction of the patients with two slides; their rows of expression are equal.
    n_jobs : int, default=None
        Number of slides written in parallel, as in joblib.
    verbose : int, default=0
        Whether to show a progress bar.

    Returns
    -------
    cohort : :class:`~sklearn.utils.Bunch`
        Dictionary-like object with the attributes:

        slides : list of str
            Paths of the slides: pyramidal, tiled JPEG TIFF.
        expression : DataFrame of shape (n_slides, 1000)
            log2 expression, indexed by slide name.
        patients : ndarray of shape (n_slides,), str
            Patient of each slide.
        composition : DataFrame of shape (n_slides, 4)
            Fraction of each texture in the tissue.
        planted_r2 : Series of shape (1000,)
            Fraction of each gene's variance over these slides that a linear function of the three
            planted components explains, before `noise`; 0 if `strength` is 0. With few slides,
            three components explain much by chance.
        DESCR : str
            Description.

    Raises
    ------
    ValueError
        If more than the 250 available patients are required.

    See Also
    --------
    load_brca_expression : The expression.
    load_cmu_slide : The source of the textures.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> from sklearn_pk.datasets import make_slide_cohort
    >>> cohort = make_slide_cohort(
    ...     4, random_state=0, out_dir=mkdtemp(), slide_size=(512, 512)
    ... )
    >>> len(cohort.slides), cohort.expression.shape
    (4, (4, 1000))
    >>> cohort.composition.round(2).sum(axis=1).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    size = tuple(slide_size)
    if len(size) != 2 or min(size) < 512:
        raise ValueError(f"slide_size: expected (width, height) of at least 512 px, got {size!r}.")
    random_state = check_random_state(random_state)
    table = load_brca_expression().expression
    numbers = draw_patients(n_slides, two_slide_share, random_state)
    n_patients = numbers[-1] + 1
    if n_patients > len(table):
        raise ValueError(
            f"n_slides={n_slides} with two_slide_share={two_slide_share} requires {n_patients} "
            f"patients, but there are {len(table)}. Use fewer slides."
        )
    rows = random_state.permutation(len(table))[numbers]
    patients, names = name_slides(numbers, 3)

    n_components = len(_TEXTURE_NAMES) - 1
    scores = principal_scores(table, n_components)[rows]
    logits = strength * scores + noise * random_state.normal(size=scores.shape)
    weights = np.exp(np.c_[np.zeros(len(rows)), logits])
    composition = weights / weights.sum(axis=1, keepdims=True)

    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    slides = [str(out_dir / f"{name}.tif") for name in names]
    seeds = random_state.randint(np.iinfo(np.int32).max, size=len(slides))
    tasks = zip(slides, composition, seeds, strict=True)
    # Threads have the textures in common, and JPEG compression releases the GIL.
    texture_library()
    Parallel(n_jobs=n_jobs, prefer="threads")(
        delayed(_compose_and_write)(path, fractions, size, seed)
        for path, fractions, seed in progress(
            tasks, total=len(slides), desc="slides", verbose=verbose, unit="slide"
        )
    )
    expression = table.iloc[rows].set_axis(names)
    planted_r2 = explained_fraction(expression.to_numpy(), scores) if strength else 0.0
    return Bunch(
        slides=slides,
        expression=expression,
        patients=patients,
        composition=pd.DataFrame(composition, index=expression.index, columns=_TEXTURE_NAMES),
        planted_r2=pd.Series(planted_r2, index=table.columns, name="planted_r2"),
        DESCR=_DESCR,
    )
