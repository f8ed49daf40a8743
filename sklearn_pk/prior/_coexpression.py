"""Co-expression graphs from training expression, from gene sets, or from both."""

# SPDX-License-Identifier: BSD-3-Clause

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
from ..utils._device import pick_device
from ..utils._frames import freeze_frames, thaw_frames
from ..utils._patients import PatientAverager, infer_groups
from ..utils._validation import check_finite
from ._aliases import load_aliases
from ._gene_sets import edges_to_graph, load_edges, pairs_to_graph, upper_pairs
from ._pearson_graph import correlated_pairs, prepare_rows
from ._recognition import positions_by_value, row_digests
from ._rewiring import rewire_pairs


def _check_order(groups, columns):
    if not isinstance(groups, pd.Series) or columns is None or list(groups.index) == list(columns):
        return
    if set(groups.index) == set(columns):
        raise ValueError(
            "groups and the columns of X name the same samples in a different order. Reorder with "
            "groups.loc[X.columns]."
        )


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
        than this. External edges that carry an r are held to it as well.

    source : {"internal", "external", "combined"}, default="internal"
        Where the edges come from: the correlations in X, the pairs in
        `external`, or the union of both.

    external : {"cgn"}, str, path-like, DataFrame, tuple or networkx graph, default="cgn"
        External knowledge, matched by the names of genes, so X has to be a DataFrame
        with gene names as its index. It is one of

        - "cgn", the shipped Cancer Gene Neighborhoods of MSigDB,
        - the path of a GMT file, read as `edges` says,
        - a DataFrame with the columns gene_a and gene_b; with a third column r, the pairs
          whose r is above `threshold`,
        - a tuple of a sparse adjacency matrix and the names of its genes, whose positive values
          are edges,
        - a networkx graph whose nodes are genes; an attribute r of its edges counts like
          the column.

    edges : {"star", "clique"}, default="star"
        How the gene sets of a GMT file become edges. "star" connects the centre gene that
        ends the name of a set (``PREFIX_GENE``) with its members; a file whose sets are not
        named so is refused. "clique" connects all members of a set with each other.

    aliases : mapping, Series, DataFrame, str, path-like or None, default=None
        Other names of genes, for names of `external` that X does not have: alias to symbol,
        a table with the columns alias and symbol, or the complete set of HGNC (columns symbol,
        prev_symbol, alias_symbol, ensembl_gene_id). Names are matched exactly first. An alias of
        two genes, or one that is the symbol of another, is not followed. Versions of
        Ensembl identifiers (``ENSG00000141510.17``) never stand in the way.

    method : {"pearson", "spearman"}, default="pearson"
        Correlation of values or of ranks.

    absolute : bool, default=False
        Whether strong negative correlations connect genes as well.

    min_samples : int, default=2
        Smallest number of patients that correlations are computed from. Two are
        the least that have one; below some twenty they are mostly chance.

    rewire : float, default=0.0
        Share of the edges that are rewired at random, in [0, 1], each gene keeping its number
        of edges. With 1 the graph holds no knowledge but its degrees: what a
        model gains from it is not owed to knowing which genes go together.

    device : str, default="cpu"
        Where products are computed: "cpu", "cuda" or another torch device, "auto" for the GPU if
        there is one. The edges do not depend on it.

    random_state : int, RandomState instance or None, default=None
        Seed of `rewire`.

    verbose : int, default=0
        Whether to show a progress bar.

    Attributes
    ----------
    graph_ : CSR array of shape (n_genes, n_genes), float32
        Adjacency matrix: symmetric, ones, zero diagonal.

    gene_names_in_ : ndarray of shape (n_genes,), object
        Index of X. Defined only when X is a DataFrame whose index is not a plain numbering.

    n_edges_ : int
        Number of undirected edges.

    n_connected_genes_ : int
        Number of genes with at least one edge.

    n_rewired_edges_ : int
        Number of edges that were not there before `rewire`.

    constant_genes_ : ndarray
        Genes that do not vary over the patients and so have no correlation: their names, or their
        positions where X has no names. Empty for ``source="external"``.

    unmatched_genes_ : ndarray of str
        Genes of the external source that are not in X; empty without one.

    n_features_in_ : int
        Number of columns of X.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns. Defined only when X is a DataFrame with strings as
        its columns.

    See Also
    --------
    NMFGeneEmbedder : Turns the graph into gene embeddings.
    EigengeneEmbedder : Gene embeddings from expression without a graph.
    sklearn_pk.regression.PriorKnowledgeRegressor : Fits both on training patients.

    Notes
    -----
    Correlations are computed in blocks of float32 products. Pairs that come within the bound on
    the rounding error of such a product are computed again in float64, so that the edges depend
    neither on the number of threads nor on the device. The gene by gene matrix is never built.

    :meth:`transform` knows the genes of :meth:`fit` again, by name or, where X has no
    names, by their values, and returns their rows of ``graph_``, so that ``fit_transform(X)``
    equals ``fit(X).transform(X)``. Other genes, of the same patients, are connected to
    those of :meth:`fit`; their edges are not rewired.

    References
    ----------
    .. [1] "Prior knowledge injection into deep learning models predicting gene
       expression from whole slide images", AAAI 2025.
    .. [2] Subramanian et al., "Gene set enrichment analysis", PNAS 102:15545 (2005), for the
       collection of neighbourhoods.

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

    # In a search over genes, groups would be those of rows.
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
            Expression on a log scale; one row a gene, one column a patient or, with
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
            If the memory of `device` does not suffice.
        ValueError
            If gene names repeat, if names are needed and missing, if values are NaN or infinite, if
            no external gene is in X, or if there are fewer patients than `min_samples`.
        """
        names = self._gene_names(X, needed=self.source != "internal")
        columns = getattr(X, "columns", None)
        X = self._check_values(X, names, reset=True)
        self._internal, self._averager = self.source != "external", None
        if groups is not None:
            _check_order(groups, columns)
            groups = check_groups(np.asarray(groups), X.T)
            self._averager = PatientAverager(groups)
        elif self.source != "external":
            self._warn_of_repeats(X)
        if names is None:
            if hasattr(self, "gene_names_in_"):
                del self.gene_names_in_
        else:
            self.gene_names_in_ = names
        # Averaged values depend on how they were rounded, so genes are known by those they had.
        self._digests = None if self._averager is None else row_digests(X)
        # A copy, which nobody else changes; external edges need no values.
        self._fit_X = self._average(X).copy() if self._internal else np.empty((len(X), 0))
        if self._internal:
            self._check_patients(self._fit_X.shape[1])
        self._settings = {"threshold": self.threshold, "absolute": self.absolute}
        self._fit_method = self.method
        self._edges, self._aliases = None, load_aliases(self.aliases)
        if self.source != "internal":
            self._edges = load_edges(
                self.external, edges=self.edges, threshold=self.threshold, absolute=self.absolute
            )
        self.graph_ = self._connect()
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
            Expression on a log scale; one row a gene, one column a patient or, with
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
        X = self._average(X)
        known, new = np.flatnonzero(positions >= 0), np.flatnonzero(positions < 0)
        if not new.size:
            return self.graph_[positions]
        added = self._connect_new(X[new], None if names is None else names[new])
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
                    f"{list(repeated[:5])!r}. Rows of X are genes; sum or drop repeated ones."
                )
        if names is None and needed:
            raise ValueError(
                f"source={self.source!r} matches genes by name, but X has no gene names. Pass a "
                "DataFrame whose index holds them, such as expression.T."
            )
        return names

    def get_feature_names_out(self, input_features=None):
        """
        Name the columns of the graph, which are genes.

        Parameters
        ----------
        input_features : None
            Ignored, present for API consistency.

        Returns
        -------
        names : ndarray of shape (n_genes,), object
            Names of the genes of :meth:`fit`; numbered ones where X had none.
        """
        check_is_fitted(self, "graph_")
        names = getattr(self, "gene_names_in_", None)
        if names is None:
            names = [f"coexpressiongraph{number}" for number in range(self.graph_.shape[0])]
        return np.array([str(name) for name in names], dtype=object)

    def set_output(self, *, transform=None):
        """
        Do nothing: a graph stays a sparse matrix, whatever the steps after it return.

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

    def _average(self, X):
        if self._averager is None:
            return X
        return np.ascontiguousarray((self._averager @ X.T).T, dtype=X.dtype)

    def _check_patients(self, n_patients):
        if n_patients < self.min_samples:
            raise ValueError(
                f"CoexpressionGraph needs at least min_samples={self.min_samples} patients "
                f"(columns of X, or groups) to correlate genes, got n_features={n_patients}, "
                f"that is {n_patients} feature(s)."
            )

    def _warn_of_repeats(self, X):
        for genes in (X[:16], X):  # some genes tell columns apart as a rule
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
        i, j = np.empty((2, 0), dtype=np.intp)
        constant = np.zeros(n_genes, dtype=bool)
        if self._internal:
            rows = prepare_rows(self._fit_X, method=self._fit_method)
            constant = rows.norms == 0
            i, j = self._correlated(rows)
        names = getattr(self, "gene_names_in_", np.arange(n_genes))
        self.constant_genes_ = names[constant]
        self.unmatched_genes_ = np.empty(0, dtype=str)
        if self._edges is not None:
            external, self.unmatched_genes_ = edges_to_graph(self._edges, names, self._aliases)
            self._check_matched(names)
            rows, columns = upper_pairs(external)
            i, j = np.concatenate([i, rows]), np.concatenate([j, columns])
        graph = pairs_to_graph(i, j, n_genes)
        self.n_rewired_edges_ = 0
        if self.rewire:
            random_state = check_random_state(self.random_state)
            pairs = rewire_pairs(*upper_pairs(graph), n_genes, self.rewire, random_state)
            before, graph = graph, pairs_to_graph(*pairs, n_genes)
            self.n_rewired_edges_ = (graph.nnz - int(graph.multiply(before).sum())) // 2
        return graph

    def _connect_new(self, X, names):
        n_known, n_new = len(self._fit_X), len(X)
        i, j = np.empty((2, 0), dtype=np.intp)
        if self._internal:
            method = self._fit_method
            rows, columns = (prepare_rows(part, method=method) for part in (X, self._fit_X))
            i, j = self._correlated(rows, columns)
        if self._edges is not None:
            all_names = np.concatenate([self.gene_names_in_, names])
            external, _ = edges_to_graph(self._edges, all_names, self._aliases)
            external = sparse.coo_array(external[n_known:, :n_known])
            i, j = np.concatenate([i, external.row]), np.concatenate([j, external.col])
        graph = sparse.csr_array((np.ones(len(i), np.float32), (i, j)), shape=(n_new, n_known))
        graph.sum_duplicates()
        graph.data[:] = 1.0
        return graph

    def _correlated(self, rows, columns=None):
        return correlated_pairs(
            rows,
            columns,
            **self._settings,
            device=pick_device(self.device),
            verbose=self.verbose,
        )

    def _check_matched(self, names):
        genes = pd.unique(self._edges.to_numpy().ravel())
        if not len(genes):
            raise ValueError(
                f"external: it has no edges, or none with an r above threshold={self.threshold!r}."
            )
        if len(self.unmatched_genes_) == len(genes):
            raise ValueError(
                f"external: none of its genes (such as {genes[0]!r}) is among the {len(names)} "
                f"genes of X (such as {names[0]!r}). Both need the same kind of identifiers, for "
                "the shipped collection HGNC symbols; a table in `aliases` can lead from one to "
                "the other."
            )

    def __getstate__(self):
        return freeze_frames(super().__getstate__())

    def __setstate__(self, state):
        super().__setstate__(thaw_frames(state))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags
