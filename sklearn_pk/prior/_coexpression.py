"""Co-expression graphs from training expression, from gene sets, or from both."""

# SPDX-License-Identifier: BSD-3-Clause

import hashlib
import os
import warnings
from numbers import Integral, Real

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.base import BaseEstimator, TransformerMixin, _fit_context
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from ..utils import check_groups
from ..utils._annotation import check_samples
from ..utils._device import pick_device
from ..utils._frames import freeze_frames, thaw_frames
from ..utils._patients import PatientAverager, infer_groups, warn_of_equal
from ..utils._reporting import warn_user
from ..utils._validation import check_finite, did_you_mean
from ._expression_sources import normalize_sources
from ._gene_sets import edges_to_graph, load_aliases, load_edges, pairs_to_graph, upper_pairs
from ._pearson_graph import correlated_pairs, prepare_rows

# Attempted swaps per edge, enough to make its new position independent of the old one.
_ROUNDS = 20
# Below this fraction of its genes or of those of X, external knowledge is warned about.
_FEW_MATCHED = 0.1


def _check_order(groups, columns):
    if not isinstance(groups, pd.Series) or columns is None or list(groups.index) == list(columns):
        return
    if set(groups.index) == set(columns):
        raise ValueError(
            "groups and the columns of X name the same samples in a different order. Reorder with "
            "groups.loc[X.columns]."
        )


def row_digests(X):
    """Hash the float32 values of each row."""
    with np.errstate(over="ignore"):
        X = np.asarray(X, dtype=np.float32) + np.float32(0)  # -0.0 becomes 0.0
    return [hashlib.blake2b(row.tobytes(), digest_size=16).hexdigest() for row in X]


def positions_by_value(X, known):
    """Match rows with hashes; the k-th of several equal rows matches the k-th equal hash."""
    candidates = {}
    for position, digest in enumerate(known):
        candidates.setdefault(digest, []).append(position)
    seen, positions = {}, []
    for digest in row_digests(X):
        number = seen[digest] = seen.get(digest, -1) + 1
        matches = candidates.get(digest, [-1])
        positions.append(matches[min(number, len(matches) - 1)])
    return np.array(positions, dtype=np.intp)


def rewire_pairs(rows, columns, n_genes, fraction, random_state):
    """Rewire a fraction of the edges at random and keep the degree of every gene."""
    ends = np.sort(np.stack([rows, columns], axis=1).astype(np.int64), axis=1)
    chosen = random_state.permutation(len(ends))[: round(fraction * len(ends))]
    half = len(chosen) // 2
    for _ in range(_ROUNDS if half else 0):
        first, second = np.split(random_state.permutation(chosen)[: 2 * half], 2)
        a, b = ends[first].T
        c, d = np.where(random_state.randint(2, size=(half, 1)), ends[second], ends[second, ::-1]).T
        one, other = np.sort([a, d], axis=0), np.sort([c, b], axis=0)
        keys = np.stack([_key(one, n_genes), _key(other, n_genes)])
        _, number, times = np.unique(keys, return_inverse=True, return_counts=True)
        new = (times[number.reshape(keys.shape)] == 1) & ~np.isin(keys, _key(ends.T, n_genes))
        swap = new.all(axis=0) & (one[0] != one[1]) & (other[0] != other[1])
        ends[first[swap]], ends[second[swap]] = one.T[swap], other.T[swap]
    return ends[:, 0], ends[:, 1]


def _key(ends, n_genes):
    return ends[0] * n_genes + ends[1]


class CoexpressionGraph(TransformerMixin, BaseEstimator, auto_wrap_output_keys=None):
    """
    Connect genes whose expression correlates.

    The rows of X are *genes*, its columns patients: pass ``expression.T``. As
    with :class:`~sklearn.neighbors.KNeighborsTransformer`, the result is a
    sparse matrix over genes. Edges are undirected and unweighted, and a gene is
    never its own neighbour.

    Parameters
    ----------
    threshold : float, default=0.85
        Two genes are connected if their correlation over the patients is larger
        than this. The threshold also applies to external edges with an r.

    source : {"internal", "external", "combined"}, default="internal"
        Source of the edges: the correlations in X, the pairs in
        `external`, or the union of both.

    external : {"cgn"}, str, path-like, DataFrame, tuple or networkx graph, default="cgn"
        External knowledge, matched by gene name, so X has to be a DataFrame
        with gene names as its index. It is one of

        - "cgn", the shipped Cancer Gene Neighborhoods of MSigDB,
        - the path of a GMT file, converted to edges according to `edges`,
        - a DataFrame with the columns gene_a and gene_b; with a third column r, the pairs
          with r above `threshold` are used,
        - a tuple of a sparse adjacency matrix and the names of its genes, whose positive values
          are edges,
        - a networkx graph whose nodes are genes; an edge attribute r is treated like
          the column r.

    edges : {"star", "clique"}, default="star"
        How the gene sets of a GMT file become edges. "star" connects the centre gene that
        ends the name of a set (``PREFIX_GENE``) with its members; a file with other set
        names raises an error. "clique" connects all members of a set with each other.

    aliases : mapping, Series, DataFrame, str, path-like or None, default=None
        Aliases of genes, for names in `external` that are not in X: a mapping of alias to symbol,
        a table with the columns alias and symbol, or the HGNC complete set (columns symbol,
        prev_symbol, alias_symbol, ensembl_gene_id). Exact matches take precedence. An alias of
        two genes, or one that is the symbol of another gene, is ignored, and so are the versions
        of Ensembl identifiers (``ENSG00000141510.17``).

    method : {"pearson", "spearman"}, default="pearson"
        Whether to correlate values or ranks.

    absolute : bool, default=False
        Whether strong negative correlations connect genes as well.

    min_samples : int, default=2
        Minimum number of patients for computing correlations. Correlations over
        fewer than about 20 patients are mostly noise.

    expression : DataFrame of shape (n_other_patients, n_genes) or None, default=None
        Expression of patients without slides, on a log scale, for the internal correlations: one
        row per patient, columns matched with the genes of X by name. Each gene is normalised
        within this table and within X. It must not contain patients who are trained on or
        tested; those found by name, TCGA barcode or equal values are refused.

    use : {"add", "instead"}, default="add"
        Whether to correlate genes over the patients of X and `expression` together or of
        `expression` alone.

    weight : float, default=1.0
        Weight of a patient of `expression`, with ``use="add"``, relative to a patient of X.

    rewire : float, default=0.0
        Fraction of the edges that are rewired at random, in [0, 1], keeping the degree of each
        gene. With 1 the graph has no information except its degrees: the gain of a model with it
        does not come from knowing which genes are co-expressed.

    device : str, default="cpu"
        Device of the matrix products: "cpu", "cuda" or another torch device, or "auto" for a GPU if
        there is one. The edges do not depend on the device.

    random_state : int, RandomState instance or None, default=None
        Seed of `rewire`.

    verbose : int, default=0
        Whether to show a progress bar.

    Attributes
    ----------
    graph_ : CSR array of shape (n_genes, n_genes), float32
        Adjacency matrix: symmetric, ones, zero diagonal.

    gene_names_in_ : ndarray of shape (n_genes,), object
        Index of X. Defined only when X is a DataFrame whose index is not a RangeIndex.

    external_graph_ : CSR array of shape (n_genes, n_genes) or None
        Those of its edges that are in `external`; None without `external`, or with `rewire`.

    n_edges_ : int
        Number of undirected edges.

    n_connected_genes_ : int
        Number of genes with at least one edge.

    n_rewired_edges_ : int
        Number of edges that did not exist before rewiring.

    constant_genes_ : ndarray
        Genes that are constant over the patients and so have no correlation: their names, or
        their positions if X has no names. Empty for ``source="external"``.

    unmatched_genes_ : ndarray of str
        Genes of the external source that are not in X; empty for ``source="internal"``.

    n_features_in_ : int
        Number of columns of X.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns. Defined only when X is a DataFrame with strings as
        its columns.

    See Also
    --------
    NMFGeneEmbedder : Factorises the graph into gene embeddings.
    EigengeneEmbedder : Gene embeddings from expression without a graph.
    sklearn_pk.regression.PriorKnowledgeRegressor : Fits both on training patients.

    Notes
    -----
    Correlations are computed in blocks of float32 products. Pairs within the rounding error
    bound of the threshold are recomputed in float64, so that the edges depend neither on the
    number of threads nor on the device. The full gene by gene matrix is never built.

    :meth:`transform` recognises the genes of :meth:`fit` by name or, if X has no names, by
    their values, and returns their rows of ``graph_``, so that ``fit_transform(X)`` equals
    ``fit(X).transform(X)``. Other genes, measured in the same patients, are connected to the
    genes of :meth:`fit`; their edges are not rewired.

    References
    ----------
    .. [1] "Prior knowledge injection into deep learning models predicting gene
       expression from whole slide images", AAAI 2025.
    .. [2] Subramanian et al., "Gene set enrichment analysis", PNAS 102:15545 (2005), for the
       Cancer Gene Neighborhoods.

    Examples
    --------
    >>> from sklearn_pk.datasets import load_brca_expression
    >>> from sklearn_pk.prior import CoexpressionGraph
    >>> expression = load_brca_expression().expression
    >>> graph = CoexpressionGraph(threshold=0.85).fit(expression.T)
    >>> graph.n_edges_, graph.n_connected_genes_
    (483, 164)
    >>> graph.graph_.shape
    (1000, 1000)
    """

    # A search over genes would pass the groups of rows, not of columns.
    __metadata_request__fit = {"groups": False}

    _parameter_constraints: dict = {
        "threshold": [Interval(Real, -1, 1, closed="both")],
        "source": [StrOptions({"internal", "external", "combined"})],
        "external": [str, os.PathLike, pd.DataFrame, tuple, HasMethods(["edges", "nodes"])],
        "edges": [StrOptions({"star", "clique"})],
        "aliases": [HasMethods("items"), pd.DataFrame, str, os.PathLike, None],
        "method": [StrOptions({"pearson", "spearman"})],
        "absolute": ["boolean"],
        "min_samples": [Interval(Integral, 2, None, closed="left")],
        "expression": [pd.DataFrame, None],
        "use": [StrOptions({"add", "instead"})],
        "weight": [Interval(Real, 0, None, closed="neither")],
        "rewire": [Interval(Real, 0, 1, closed="both")],
        "device": [str],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        *,
        threshold=0.85,
        source="internal",
        external="cgn",
        edges="star",
        aliases=None,
        method="pearson",
        absolute=False,
        min_samples=2,
        expression=None,
        use="add",
        weight=1.0,
        rewire=0.0,
        device="cpu",
        random_state=None,
        verbose=0,
    ):
        self.threshold = threshold
        self.source = source
        self.external = external
        self.edges = edges
        self.aliases = aliases
        self.method = method
        self.absolute = absolute
        self.min_samples = min_samples
        self.expression = expression
        self.use = use
        self.weight = weight
        self.rewire = rewire
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None, groups=None):
        """
        Find the edges between the genes of X.

        Parameters
        ----------
        X : {array-like, DataFrame} of shape (n_genes, n_samples)
            Expression on a log scale; one row per gene, one column per patient or, with
            `groups`, a sample.
        y : None
            Ignored, present for API consistency.
        groups : array-like of shape (n_samples,), default=None
            Patient of each column. The columns of a patient are averaged, so that
            each patient counts once.

        Returns
        -------
        self : object
            The fitted graph.

        Raises
        ------
        MemoryError
            If `device` runs out of memory.
        ValueError
            If gene names repeat or are required but missing, if values are NaN or infinite, if
            no external gene is in X, if there are fewer patients than `min_samples`, or if
            `expression` shares no gene or a patient with X.
        """
        names = self._gene_names(X, needed=self.source != "internal")
        columns = getattr(X, "columns", None)
        X = self._check_values(X, names, reset=True)
        check_samples(X, names, columns)
        internal, self._averager = self.source != "external", None
        self._patients = None if columns is None else np.asarray(columns, dtype=object)
        if groups is not None:
            _check_order(groups, columns)
            samples = None if columns is None else list(columns)
            groups = check_groups(np.asarray(groups), X.T, samples)
            warn_of_equal(X.T, groups)
            self._averager = PatientAverager(groups)
            self._patients = self._averager.patients
        elif internal:
            self._warn_about_repeats(X)
        if names is None:
            if hasattr(self, "gene_names_in_"):
                del self.gene_names_in_
        else:
            self.gene_names_in_ = names
        self._correlation = None
        if internal:
            limits = {"threshold": self.threshold, "absolute": self.absolute}
            self._correlation = {"method": self.method, **limits}
        # Averages depend on rounding, so genes are recognised by their original values.
        unchanged = self._averager is None and self.expression is None
        self._digests = None if unchanged else row_digests(X)
        # A copy, so that changes of X by the caller have no effect. External edges need no values.
        self._fit_X = self._combine(X, names).copy() if internal else np.empty((len(X), 0))
        if internal:
            self._check_patients(self._fit_X.shape[1])
        self._edges, self._aliases = None, load_aliases(self.aliases)
        if self.source != "internal":
            self._edges = load_edges(
                self.external, edges=self.edges, threshold=self.threshold, absolute=self.absolute
            )
        self.graph_ = self._rewire(self._connect())
        degrees = np.diff(self.graph_.indptr)
        self.n_edges_ = int(degrees.sum()) // 2
        self.n_connected_genes_ = int(np.count_nonzero(degrees))
        return self

    def fit_transform(self, X, y=None, groups=None):
        """
        Find the edges between the genes of X and return them.

        Parameters
        ----------
        X : {array-like, DataFrame} of shape (n_genes, n_samples)
            Expression on a log scale; one row per gene, one column per patient or, with
            `groups`, a sample.
        y : None
            Ignored, present for API consistency.
        groups : array-like of shape (n_samples,), default=None
            Patient of each column.

        Returns
        -------
        graph : CSR array of shape (n_genes, n_genes), float32
            Adjacency matrix: symmetric, ones, zero diagonal.
        """
        return self.fit(X, groups=groups).graph_.copy()

    def transform(self, X):
        """
        Connect the genes of X to the genes of :meth:`fit`.

        Parameters
        ----------
        X : {array-like, DataFrame} of shape (n_rows, n_samples)
            Expression of genes in the same samples as in :meth:`fit`.

        Returns
        -------
        graph : CSR array of shape (n_rows, n_genes), float32
            One where a gene of X and a gene of :meth:`fit` are connected.
        """
        check_is_fitted(self, "graph_")
        names = self._gene_names(X, needed=self._edges is not None)
        X = self._check_values(X, names, reset=False)
        if names is not None and hasattr(self, "gene_names_in_"):
            positions = pd.Index(self.gene_names_in_).get_indexer(names)
        else:
            known = row_digests(self._fit_X) if self._digests is None else self._digests
            positions = positions_by_value(X, known)
        known, new = np.flatnonzero(positions >= 0), np.flatnonzero(positions < 0)
        if not new.size:
            return self.graph_[positions]
        new_names = None if names is None else names[new]
        added = self._connect_new(self._combine(X[new], new_names), new_names)
        order = np.argsort(np.concatenate([known, new]))
        return sparse.vstack([self.graph_[positions[known]], added], format="csr")[order]

    def _gene_names(self, X, *, needed):
        names = None
        if isinstance(X, pd.DataFrame) and not isinstance(X.index, pd.RangeIndex):
            index = X.index
            names = index.to_numpy(dtype=object)
            repeated = index[index.duplicated()].unique()
            if len(repeated):
                raise ValueError(
                    f"X: gene names must be unique, but {len(repeated)} appear more than once: "
                    f"{list(repeated[:5])!r}. Rows of X are genes; sum or drop repeated rows."
                )
        if names is None and needed:
            raise ValueError(
                f"source={self.source!r} matches genes by name, but X has no gene names. Pass a "
                "DataFrame with gene names as its index, such as expression.T."
            )
        return names

    def get_feature_names_out(self, input_features=None):
        """
        Get the gene names of the columns of the graph.

        Parameters
        ----------
        input_features : None
            Ignored, present for API consistency.

        Returns
        -------
        names : ndarray of shape (n_genes,), object
            Names of the genes of :meth:`fit`, or generated names if X had none.
        """
        check_is_fitted(self, "graph_")
        names = getattr(self, "gene_names_in_", None)
        if names is None:
            names = [f"coexpressiongraph{number}" for number in range(self.graph_.shape[0])]
        return np.array([str(name) for name in names], dtype=object)

    def set_output(self, *, transform=None):
        """
        Do nothing: the graph is always returned as a sparse matrix.

        Parameters
        ----------
        transform : {"default", "pandas", "polars"}, default=None
            Ignored.

        Returns
        -------
        self : object
            The graph.
        """
        return self

    def _check_values(self, X, names, *, reset):
        columns = getattr(X, "columns", None)
        dtype = [np.float64, np.float32]
        X = validate_data(self, X, dtype=dtype, ensure_all_finite=False, reset=reset)
        check_finite(X.T, names, columns, "X")
        return X

    def _combine(self, X, names):
        """Return one column per patient, those of `expression` included."""
        if self._averager is not None:
            X = np.ascontiguousarray((self._averager @ X.T).T, dtype=X.dtype)
        if self.expression is None or self._correlation is None:
            return X
        normalize = "standard" if self.method == "pearson" else "rank"
        return normalize_sources(X, names, self._patients, self, normalize)[0]

    def _check_patients(self, n_patients):
        if n_patients < self.min_samples:
            raise ValueError(
                f"CoexpressionGraph needs at least min_samples={self.min_samples} patients "
                f"(columns of X, or groups) to correlate genes, got n_features={n_patients}, "
                f"that is {n_patients} feature(s)."
            )

    def _warn_about_repeats(self, X):
        for genes in (X[:16], X):  # a few genes usually suffice to find distinct columns
            groups = infer_groups(np.ascontiguousarray(genes.T))
            n_repeats = len(groups) - groups.max() - 1
            if not n_repeats:
                return
        warnings.warn(
            f"{n_repeats} of {len(groups)} columns of X repeat the expression of an earlier one, "
            "as slides of the same patient do, and count again in every correlation. Pass "
            "groups=patients to count each patient once.",
            UserWarning,
            stacklevel=4,
        )

    def _connect(self):
        n_genes = len(self._fit_X)
        names = getattr(self, "gene_names_in_", np.arange(n_genes))
        pairs, constant = [], np.zeros(n_genes, dtype=bool)
        self.unmatched_genes_, self.external_graph_ = np.empty(0, dtype=str), None
        if self._correlation is not None:
            found, constant = self._correlated(self._fit_X)
            pairs.append(found)
        if self._edges is not None:
            external, self.unmatched_genes_ = edges_to_graph(self._edges, names, self._aliases)
            self._check_matched(names)
            pairs.append(upper_pairs(external))
            # Rewired edges come from neither source.
            self.external_graph_ = None if self.rewire else external
        self.constant_genes_ = names[constant]
        return pairs_to_graph(*np.concatenate(pairs, axis=1), n_genes)

    def _rewire(self, graph):
        self.n_rewired_edges_ = 0
        if not self.rewire:
            return graph
        n_genes, random_state = graph.shape[0], check_random_state(self.random_state)
        pairs = rewire_pairs(*upper_pairs(graph), n_genes, self.rewire, random_state)
        rewired = pairs_to_graph(*pairs, n_genes)
        self.n_rewired_edges_ = (rewired.nnz - int(rewired.multiply(graph).sum())) // 2
        return rewired

    def _connect_new(self, X, names):
        n_known, n_new = len(self._fit_X), len(X)
        pairs = []
        if self._correlation is not None:
            pairs.append(self._correlated(X, self._fit_X)[0])
        if self._edges is not None:
            all_names = np.concatenate([self.gene_names_in_, names])
            external, _ = edges_to_graph(self._edges, all_names, self._aliases)
            external = sparse.coo_array(external[n_known:, :n_known])
            pairs.append((external.row, external.col))
        i, j = np.concatenate(pairs, axis=1)
        graph = sparse.csr_array((np.ones(len(i), np.float32), (i, j)), shape=(n_new, n_known))
        graph.sum_duplicates()
        graph.data[:] = 1.0
        return graph

    def _correlated(self, X, known=None):
        """Return the correlated pairs within X, or of X and known genes, and constant genes."""
        limits = dict(self._correlation)
        method = limits.pop("method")
        rows = prepare_rows(X, method=method)
        columns = None if known is None else prepare_rows(known, method=method)
        device = pick_device(self.device)
        pairs = correlated_pairs(rows, columns, **limits, device=device, verbose=self.verbose)
        return pairs, rows.norms == 0

    def _check_matched(self, names):
        genes = pd.unique(self._edges.to_numpy().ravel())
        if not len(genes):
            raise ValueError(
                f"external has no edges, or none with an r above threshold={self.threshold!r}."
            )
        n_matched, n_most = len(genes) - len(self.unmatched_genes_), min(len(genes), len(names))
        if 0 < n_matched < _FEW_MATCHED * n_most:
            warn_user(
                f"external: only {n_matched} of its {len(genes)} genes (such as {genes[0]!r}) are "
                f"among the {len(names)} genes of X (such as {names[0]!r}). Both need the same "
                "kind of identifiers; pass a table in `aliases` to translate them."
            )
        if not n_matched:
            raise ValueError(
                f"external: none of its genes (such as {genes[0]!r}) is among the {len(names)} "
                f"genes of X (such as {names[0]!r}). Both need the same kind of identifiers (HGNC "
                "symbols for the shipped collection). Pass a table in `aliases` to translate them."
                f"{did_you_mean(genes, names)}"
            )

    def __getstate__(self):
        return freeze_frames(super().__getstate__())

    def __setstate__(self, state):
        super().__setstate__(thaw_frames(state))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags
