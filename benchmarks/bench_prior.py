"""Graph and gene embeddings at the size of the transcriptome, written to a JSON file.

Without arguments, steps that need no data are measured. ``--expression`` adds a real matrix: an npz
file with the arrays ``values`` (samples x genes, log scale) and ``gene`` (symbols, or SYMBOL|id).
Each step runs in its own process, so that memory is not reused.
"""

# SPDX-License-Identifier: BSD-3-Clause

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from _common import RESULTS, describe, peak_mb, timed, write_results
from scipy import sparse
from sklearn.decomposition import non_negative_factorization
from sklearn.random_projection import GaussianRandomProjection

from sklearn_pk.datasets import load_cgn
from sklearn_pk.metrics import neighborhood_preservation
from sklearn_pk.prior import CoexpressionGraph, EigengeneEmbedder, NMFGeneEmbedder
from sklearn_pk.prior._embedder import residual_norm
from sklearn_pk.prior._nmf import hals, initialize

N_COMPONENTS = 1024
THRESHOLD = 0.85


def planted_expression(n_genes, n_patients):
    """Generate expression of modules of 20 genes in float32, without large copies."""
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(n_genes // 20 + 1, n_patients)).astype(np.float32), 20, axis=0)
    X = X[:n_genes]
    for start in range(0, n_genes, 1000):
        rows = X[start : start + 1000]
        rows += 0.4 * rng.normal(size=rows.shape).astype(np.float32)
    return X


def read_expression(path):
    """Read a real matrix as genes x samples, without genes that have no unique name."""
    with np.load(path, allow_pickle=True) as arrays:
        names = pd.Series(arrays["gene"].astype(str)).str.split("|").str[0]
        X = pd.DataFrame(arrays["values"].T.astype(np.float32), index=names)
    return X[~X.index.duplicated(keep=False) & (X.index != "?")]


def corrcoef_graph(X, threshold):
    """Build the graph from the whole correlation matrix in float32."""
    r = np.corrcoef(X, dtype=np.float32)
    np.fill_diagonal(r, 0)
    return np.argwhere(r > threshold)


def float64_pairs(X, threshold):
    """Find the pairs above the threshold from every correlation in float64."""
    r = np.corrcoef(X.astype(np.float64))
    return set(map(tuple, np.argwhere(np.triu(r > threshold, 1)).tolist()))


def step_graph(arguments):
    """Time one method for the graph, the first and later calls, and its memory above the input."""
    X = planted_expression(arguments.n_genes, 816)
    before = peak_mb()
    if arguments.way == "reference":
        pairs, first = timed(corrcoef_graph, X, THRESHOLD, repeats=1)
        again = timed(corrcoef_graph, X, THRESHOLD, repeats=2)[1]
        pairs = {(i, j) for i, j in pairs.tolist() if i < j}
    else:
        graph = CoexpressionGraph(threshold=THRESHOLD, device=arguments.device)
        fitted, first = timed(graph.fit, X, repeats=1)
        memory = peak_mb() - before
        again = timed(graph.fit, X, repeats=2)[1]
        upper = sparse.triu(fitted.graph_).tocoo()
        pairs = set(zip(upper.row.tolist(), upper.col.tolist(), strict=True))
    if arguments.way == "reference":
        memory = peak_mb() - before
    few = X[:4000]
    exact = float64_pairs(few, THRESHOLD)
    here = {pair for pair in pairs if pair[1] < 4000}
    return {
        "seconds": first,
        "seconds_again": again,
        "mb_above_input": memory,
        "n_edges": len(pairs),
        "edges_unlike_float64": len(here ^ exact),
    }


def step_real_graph(arguments):
    """Compare the edges of a real matrix with float64 on all pairs of some genes."""
    X = read_expression(arguments.expression)
    fitted, seconds = timed(CoexpressionGraph(device=arguments.device).fit, X, repeats=1)
    few = np.random.default_rng(0).permutation(len(X))[:4000]
    upper = sparse.triu(fitted.graph_[few][:, few]).tocoo()
    found = set(zip(upper.row.tolist(), upper.col.tolist(), strict=True))
    with np.errstate(invalid="ignore", divide="ignore"):  # constant genes
        expected = float64_pairs(X.to_numpy()[few], THRESHOLD)
    return {
        "seconds": seconds,
        "shape": list(X.shape),
        "n_edges": fitted.n_edges_,
        "n_constant_genes": len(fitted.constant_genes_),
        "edges_of_4000_genes": len(expected),
        "edges_unlike_float64": len(found ^ expected),
    }


def cgn_graph():
    """Build the graph of the whole shipped collection."""
    gene_sets = load_cgn().gene_sets
    members = {gene for genes in gene_sets.values() for gene in genes}
    genes = sorted(members | {name.partition("_")[2] for name in gene_sets})
    X = pd.DataFrame(np.zeros((len(genes), 2), dtype=np.float32), index=genes)
    return CoexpressionGraph(source="external").fit(X).graph_


def make_graph(arguments):
    """Build the graph of the whole shipped collection, or of the real matrix."""
    if arguments.graph == "cgn":
        return cgn_graph()
    X = read_expression(arguments.expression)
    return CoexpressionGraph(source=arguments.graph).fit(X).graph_


def drop_unconnected(graph):
    """Return the subgraph of the genes with an edge, as input of a solver."""
    connected = np.flatnonzero(np.diff(graph.indptr))
    return sparse.csr_array(graph[connected][:, connected])


def coordinate_descent(X, start, n_iter):
    """Factorise with scikit-learn, which changes the initial factors."""
    copies = [factor.copy() for factor in start]
    options = {"init": "custom", "n_components": len(start[1]), "tol": 0, "max_iter": n_iter}
    return non_negative_factorization(sparse.csr_matrix(X), *copies, **options)


def step_iteration(arguments):
    """Compare some iterations of HALS and of scikit-learn's coordinate descent."""
    X = drop_unconnected(make_graph(arguments))
    start = initialize(X, N_COMPONENTS, "random", np.random.RandomState(0))
    n_iter = arguments.n_iter

    def ours():
        return hals(X, *start, tol=0, max_iter=n_iter, device=arguments.device)

    ours()  # imports, and memory that is used for the first time
    (W, H, _), seconds = timed(ours, repeats=2)
    (W_reference, H_reference, _), reference_seconds = timed(
        coordinate_descent, X, start, n_iter, repeats=1
    )
    return {
        "genes": X.shape[0],
        "edges": X.nnz // 2,
        "n_iter": n_iter,
        "seconds": seconds / n_iter,
        "reference_seconds": reference_seconds / n_iter,
        "ratio": reference_seconds / seconds,
        "objective": residual_norm(X, W, H),
        "reference_objective": residual_norm(X, W_reference, H_reference),
    }


def step_embedding(arguments):
    """Embed a graph to convergence and measure how well neighbours are preserved."""
    graph = make_graph(arguments)
    before = peak_mb()
    embedder = NMFGeneEmbedder(N_COMPONENTS, random_state=0, device=arguments.device)
    both, seconds = timed(embedder.fit_transform, graph, repeats=1)
    row = {
        "seconds": seconds,
        "n_iter": embedder.n_iter_,
        "peak_mb": peak_mb(),
        "mb_above_input": peak_mb() - before,
        "n_genes": graph.shape[0],
        "n_connected_genes": int(np.count_nonzero(np.diff(graph.indptr))),
        "n_edges": graph.nnz // 2,
        "n_uncovered_genes": embedder.n_uncovered_genes_,
        "residual_share": embedder.reconstruction_err_ / np.sqrt(graph.nnz),
    }
    left = embedder.set_params(factors="left").fit_transform(graph)
    with_loops = graph + sparse.eye_array(graph.shape[0], format="csr", dtype=np.float32)
    projection = GaussianRandomProjection(N_COMPONENTS, random_state=0)
    embeddings = {
        "NMF, left factor": left,
        "NMF, both factors": both,
        "random projection of A + I": projection.fit_transform(with_loops),
    }
    if arguments.graph != "cgn":
        X = read_expression(arguments.expression)
        embeddings["30 eigengenes"] = EigengeneEmbedder(random_state=0).fit_transform(X)
    row["neighborhood_preservation"] = {
        name: {
            f"hops {hops}, by {normalize}": neighborhood_preservation(
                graph, embedding, hops=hops, normalize=normalize
            )
            for hops in (1, 2)
            for normalize in ("k", "degree")
        }
        for name, embedding in embeddings.items()
    }
    degrees = np.diff(graph.indptr)
    row["largest NP(100) by k, hops 1"] = float(np.minimum(degrees[degrees > 0], 100).mean() / 100)
    return row


STEPS = {
    "graph": step_graph,
    "real_graph": step_real_graph,
    "iteration": step_iteration,
    "embedding": step_embedding,
}


def run_step(step, arguments, **options):
    """Run one step in a new process and return its results."""
    names = ("n_genes", "device", "expression")
    settings = {name: getattr(arguments, name) for name in names} | options
    command = [sys.executable, __file__, "--step", step]
    for name, value in settings.items():
        if value is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    row = {"step": step} | options | json.loads(output.splitlines()[-1])
    print(json.dumps(row), flush=True)
    return row


def agrees(row):
    """Return whether a result agrees with its reference."""
    if row["step"] == "iteration":
        return row["objective"] <= 1.001 * row["reference_objective"]
    return row.get("way") == "reference" or not row.get("edges_unlike_float64")


def main():
    """Run all steps and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--expression", type=Path, help="npz file of a real matrix")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--n-genes", type=int, default=25_761)
    parser.add_argument("--n-iter", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "prior.json")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--way", default="ours", help=argparse.SUPPRESS)
    parser.add_argument("--graph", default="cgn", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(STEPS[arguments.step](arguments)))
        return
    rows = []
    for _ in range(arguments.rounds):
        rows += [run_step("graph", arguments, way=way) for way in ("reference", "ours")]
    for when in ("seconds", "seconds_again"):
        reference, ours = (
            np.median([row[when] for row in rows if row["way"] == way])
            for way in ("reference", "ours")
        )
        print(f"graph, {when}: {ours:.2f} against {reference:.2f}, {reference / ours:.1f}x")
    graphs = ["cgn"]
    if arguments.expression:
        rows.append(run_step("real_graph", arguments))
        graphs.append("combined")
    for graph in graphs:
        rows.append(run_step("iteration", arguments, graph=graph, n_iter=arguments.n_iter))
        rows.append(run_step("embedding", arguments, graph=graph))
    hardware = describe("cpu" if arguments.device == "cpu" else "cuda")
    write_results(hardware | {"rows": rows}, arguments.out)
    if not all(agrees(row) for row in rows):
        raise SystemExit("a result does not agree with its reference")


if __name__ == "__main__":
    main()
