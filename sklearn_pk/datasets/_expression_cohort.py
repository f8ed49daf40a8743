"""Cohorts of tile features and expression with a planted, known relation."""

# SPDX-License-Identifier: BSD-3-Clause

from numbers import Integral, Real

import numpy as np
import pandas as pd
from sklearn.utils import Bunch, check_random_state
from sklearn.utils._param_validation import Interval, Options, StrOptions, validate_params

# Distance of the tile types from their common centre; the signal of a factor has length 1.
_TYPE_DISTANCE = 4.0
_DESCR = """\
Bags of tile features with planted expression
=============================================

Random numbers without slides. Genes belong to co-expressed modules, each of which depends on one
factor per patient. Some of the modules are visible in the slides: each of these shifts the tiles of
one type along its own direction, by its factor plus noise. The fraction of tiles of each type
differs between slides. The other modules, and genes outside modules, are not visible in the tiles.
"""


def draw_patients(n_slides, two_slide_share, random_state):
    """Draw the patient of each slide."""
    n_patients = max(-(-n_slides // 2), round(n_slides / (1 + two_slide_share)))
    slides_of = np.ones(n_patients, dtype=int)
    slides_of[random_state.permutation(n_patients)[: n_slides - n_patients]] = 2
    return np.repeat(np.arange(n_patients), slides_of)


def name_slides(numbers, width):
    """Return the patient and the name of each slide from the number of its patient."""
    patients = np.array([f"patient-{number:0{width}d}" for number in numbers])
    second = np.r_[False, numbers[1:] == numbers[:-1]]
    names = [f"{name}-slide-{1 + other}" for name, other in zip(patients, second, strict=True)]
    return patients, pd.Index(names, name="slide")


def draw_edges(modules, known, n_neighbors, false_share, random_state):
    """Draw prior knowledge about the modules: pairs of genes, mostly within a module."""
    pairs = [np.empty((0, 2), dtype=int)]
    for module in known:
        members = np.flatnonzero(modules == module)
        if len(members) <= n_neighbors + 1:
            pairs.append(members[np.stack(np.triu_indices(len(members), 1), axis=1)])
            continue
        # A closed walk through a module gives each gene two neighbours.
        for _ in range(-(-n_neighbors // 2)):
            walk = random_state.permutation(members)
            pairs.append(np.stack([walk, np.roll(walk, 1)], axis=1))
    pairs = np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0)
    false = random_state.permutation(len(pairs))[: round(false_share * len(pairs))]
    pairs[false, 1] = draw_outsiders(pairs[false, 0], modules, random_state)
    return np.unique(np.sort(pairs, axis=1), axis=0)


def draw_outsiders(genes, modules, random_state):
    """Draw a gene outside the module of each gene."""
    order = np.argsort(modules, kind="stable")
    # With the genes sorted by module, the genes of a module are one range to exclude.
    start = np.searchsorted(modules[order], modules[genes], "left")
    stop = np.searchsorted(modules[order], modules[genes], "right")
    positions = (random_state.random_sample(len(genes)) * (len(order) - stop + start)).astype(int)
    return order[positions + np.where(positions >= start, stop - start, 0)]


def fill_expression(out, numbers, factors, modules, coherences, random_state):
    """Draw the expression of each patient into the rows of its slides."""
    levels = random_state.uniform(7, 12, size=len(modules))
    # Small enough to avoid negative values, which log2(x + 1) does not have.
    spreads = random_state.uniform(0.5, 1.2, size=len(modules))
    loadings, own = spreads * np.sqrt(coherences), spreads * np.sqrt(1 - coherences)
    rng = make_generator(random_state)
    for patient, scores in enumerate(factors):
        row = own * rng.standard_normal(len(modules), dtype=out.dtype)
        out[numbers == patient] = row + loadings * scores[modules] + levels


def fill_tiles(out, signals, n_types, noise, random_state):
    """Draw the tiles of each slide in place, without a copy."""
    n_slides, n_tiles, n_features = out.shape
    n_visible = signals.shape[1]
    axes = random_state.normal(size=(n_features, n_types + n_visible))
    axes = np.ascontiguousarray(np.linalg.qr(axes)[0].T)
    centers, directions = _TYPE_DISTANCE * axes[:n_types], axes[n_types:]
    acts_on = np.arange(n_visible) % n_types == np.arange(n_types)[:, np.newaxis]
    mixtures = random_state.dirichlet(np.full(n_types, 2.0), size=n_slides)
    rng = make_generator(random_state)
    for bag, signal, mixture in zip(out, signals, mixtures, strict=True):
        rng.standard_normal(out=bag, dtype=out.dtype)
        bag *= noise
        kinds = rng.choice(n_types, size=n_tiles, p=mixture)
        bag += (centers + (acts_on * signal) @ directions).astype(out.dtype)[kinds]


def make_generator(random_state):
    """Derive a Generator, which supports float32, from a RandomState."""
    return np.random.default_rng(random_state.randint(2**31 - 1, size=4))


def _check(coherence, n_modules, n_in_modules, n_genes, n_visible, n_types, n_features):
    coherence = tuple(coherence)
    if len(coherence) != 2 or not 0 <= coherence[0] <= coherence[1] <= 1:
        raise ValueError(
            f"coherence: expected (lowest, highest) with both in [0, 1], got {coherence!r}."
        )
    if n_in_modules < 2 * n_modules:
        raise ValueError(
            f"n_modules={n_modules} of at least two genes require {2 * n_modules} genes in them, "
            f"but module_share of n_genes={n_genes} gives {n_in_modules}. Use fewer modules."
        )
    if n_types + n_visible > n_features:
        raise ValueError(
            f"n_features={n_features} is too small: each of {n_types} tile types and {n_visible} "
            f"visible modules has its own direction. Use at least {n_types + n_visible}."
        )


@validate_params(
    {
        "n_slides": [Interval(Integral, 2, None, closed="left")],
        "n_tiles": [Interval(Integral, 1, None, closed="left")],
        "n_features": [Interval(Integral, 1, None, closed="left")],
        "n_genes": [Interval(Integral, 2, None, closed="left")],
        "n_modules": [Interval(Integral, 1, None, closed="left")],
        "module_share": [Interval(Real, 0, 1, closed="right")],
        "coherence": [tuple, list],
        "visible_share": [Interval(Real, 0, 1, closed="both")],
        "visibility": [Interval(Real, 0, 1, closed="both")],
        "n_tile_types": [Interval(Integral, 1, None, closed="left")],
        "noise": [Interval(Real, 0, None, closed="left")],
        "two_slide_share": [Interval(Real, 0, 1, closed="both")],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "known_share": [Interval(Real, 0, 1, closed="both")],
        "false_share": [Interval(Real, 0, 1, closed="both")],
        "dtype": [Options(type, {np.float32, np.float64}), StrOptions({"float32", "float64"})],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def make_expression_cohort(
    n_slides=200,
    *,
    n_tiles=50,
    n_features=128,
    n_genes=1000,
    n_modules=20,
    module_share=0.5,
    coherence=(0.3, 0.95),
    visible_share=0.5,
    visibility=0.5,
    n_tile_types=4,
    noise=1.0,
    two_slide_share=0.2,
    n_neighbors=10,
    known_share=1.0,
    false_share=0.0,
    dtype=np.float32,
    random_state=None,
):
    """
    Generate bags of tile features and expression with modules, some visible in the tiles.

    The predictable fraction of each gene is known, so that the findings of a model can be counted
    as right or wrong. No slides are written, so that cohorts may be as large as real ones:
    ``make_expression_cohort(1133, n_tiles=100, n_features=1024, n_genes=25761)`` has the shape of
    TCGA-BRCA.

    Parameters
    ----------
    n_slides : int, default=200
        Number of slides.
    n_tiles : int, default=50
        Number of tiles per slide.
    n_features : int, default=128
        Number of features per tile.
    n_genes : int, default=1000
        Number of genes.
    n_modules : int, default=20
        Number of co-expressed modules, whose sizes differ by at most one gene.
    module_share : float, default=0.5
        Fraction of the genes that belong to a module. The others vary independently.
    coherence : tuple of float, default=(0.3, 0.95)
        Minimum and maximum fraction of a gene's variance explained by its module; drawn uniformly
        for each gene of a module. The correlation of two genes of a module is the square root of
        the product of their fractions.
    visible_share : float, default=0.5
        Fraction of the modules that are visible in the tiles.
    visibility : float, default=0.5
        Fraction of the variance of a visible signal that is the patient's factor; the rest is
        noise, drawn for each slide. 0 plants nothing.
    n_tile_types : int, default=4
        Number of tile types. A visible module affects one type, and the fractions of the types in
        a slide are random: a mean over all tiles is a noisy view of the modules.
    noise : float, default=1.0
        Standard deviation of the features of a tile; a factor of 1 shifts tiles by 1.
    two_slide_share : float, default=0.2
        Fraction of the patients with two slides; their rows of expression are equal.
    n_neighbors : int, default=10
        Approximate number of `edges` of a gene in a known module.
    known_share : float, default=1.0
        Fraction of the modules, visible or not, that are covered by `edges`.
    false_share : float, default=0.0
        Fraction of the `edges` to genes outside the module.
    dtype : {float32, float64}, default=numpy.float32
        Data type of features and expression.
    random_state : int, RandomState instance or None, default=None
        Pass an int for reproducible results.

    Returns
    -------
    cohort : :class:`~sklearn.utils.Bunch`
        Dictionary-like object with the attributes:

        X : ndarray of shape (n_slides, n_tiles, n_features)
            Tile features.
        expression : DataFrame of shape (n_slides, n_genes)
            Expression on a log2 scale, indexed by slide name.
        patients : ndarray of shape (n_slides,), str
            Patient of each slide; slides of a patient are consecutive.
        planted : Series of shape (n_genes,)
            Maximum fraction of each gene's variance that the tiles explain: `visibility` times
            the fraction that its module explains; 0 for genes that are not visible. With noise,
            few tiles or few slides, a model explains less.
        modules : Series of shape (n_genes,), int
            Module of each gene, -1 for none.
        visible_modules : ndarray of int
            Modules that are visible in the tiles; none if `visibility` is 0.
        factors : DataFrame of shape (n_slides, n_modules)
            Factors of the patient of each slide, independent with unit variance.
        edges : DataFrame with columns gene_a, gene_b
            Prior knowledge, for ``CoexpressionGraph(external=...)``.
        DESCR : str
            Description.

    Raises
    ------
    ValueError
        If `coherence` is not a range within [0, 1], there are too few genes for the modules or
        too few features for the modules and tile types, or if false edges are requested but all
        genes belong to one module.

    See Also
    --------
    make_slide_cohort : Generates slide files with planted expression.
    sklearn_pk.prior.CoexpressionGraph : Uses `edges` as ``external``.

    Notes
    -----
    With f the factor of a visible module, the signal in a slide is ``z = sqrt(visibility) * f +
    sqrt(1 - visibility) * e``, and each tile of its type is shifted by z along a direction
    orthogonal to all others. A gene is ``level + spread * (sqrt(c) * f + sqrt(1 - c) * u)`` with
    c from `coherence`; e and u are standard normal. The memory is that of `X` and `expression`.

    Examples
    --------
    >>> from sklearn_pk.datasets import make_expression_cohort
    >>> cohort = make_expression_cohort(
    ...     30, n_tiles=10, n_features=32, n_genes=100, n_modules=4, random_state=0
    ... )
    >>> cohort.X.shape, cohort.expression.shape
    ((30, 10, 32), (30, 100))
    >>> int((cohort.planted > 0).sum()), cohort.visible_modules.tolist()
    (24, [2, 3])
    >>> cohort.edges.columns.tolist()
    ['gene_a', 'gene_b']
    """
    n_in_modules = round(module_share * n_genes)
    n_visible = round(visible_share * n_modules) if visibility else 0
    _check(coherence, n_modules, n_in_modules, n_genes, n_visible, n_tile_types, n_features)
    if false_share and n_modules == 1 and n_in_modules == n_genes:
        raise ValueError(
            f"false_share={false_share} requires genes outside a module, but all {n_genes} belong "
            "to the only one. Use more modules or a smaller module_share."
        )
    random_state = check_random_state(random_state)
    # Each part has its own seed, so that it does not depend on the size of the others.
    draws = [np.random.RandomState(random_state.randint(2**31 - 1)) for _ in range(5)]
    numbers = draw_patients(n_slides, two_slide_share, draws[0])
    modules = np.full(n_genes, -1)
    modules[draws[1].permutation(n_genes)[:n_in_modules]] = np.arange(n_in_modules) % n_modules
    coherences = np.where(modules >= 0, draws[1].uniform(*coherence, size=n_genes), 0.0)
    visible = np.sort(draws[1].permutation(n_modules)[:n_visible])
    known = draws[1].permutation(n_modules)[: round(known_share * n_modules)]

    factors = draws[2].normal(size=(numbers[-1] + 1, n_modules))
    chance = draws[2].normal(size=(n_slides, n_visible))
    expression = np.empty((n_slides, n_genes), dtype=dtype)
    fill_expression(expression, numbers, factors, modules, coherences, draws[3])
    X = np.empty((n_slides, n_tiles, n_features), dtype=dtype)
    signals = np.sqrt(visibility) * factors[numbers][:, visible] + np.sqrt(1 - visibility) * chance
    fill_tiles(X, signals, n_tile_types, noise, draws[4])

    genes = pd.Index([f"GENE{number:05d}" for number in range(n_genes)], dtype=object)
    patients, slides = name_slides(numbers, 4)
    pairs = draw_edges(modules, known, n_neighbors, false_share, draws[1])
    return Bunch(
        X=X,
        expression=pd.DataFrame(expression, index=slides, columns=genes, copy=False),
        patients=patients,
        planted=pd.Series(
            np.where(np.isin(modules, visible), visibility * coherences, 0.0), genes, name="planted"
        ),
        modules=pd.Series(modules, genes, name="module"),
        visible_modules=visible,
        factors=pd.DataFrame(factors[numbers], index=slides),
        edges=pd.DataFrame({"gene_a": genes[pairs[:, 0]], "gene_b": genes[pairs[:, 1]]}),
        DESCR=_DESCR,
    )
