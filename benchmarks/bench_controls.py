"""Gain of eigengenes over no prior and over controls on real data, written to a JSON file.

Features and expression are tables with one row per patient. Eight seeds take about a quarter of an
hour on one core.
"""

# SPDX-License-Identifier: BSD-3-Clause

import argparse
from pathlib import Path

import pandas as pd
from _common import RESULTS, describe, write_results
from sklearn.model_selection import KFold
from sklearn.preprocessing import QuantileTransformer

from sklearn_pk.metrics import compare_significance
from sklearn_pk.model_selection import prior_gain
from sklearn_pk.prior import EigengeneEmbedder
from sklearn_pk.regression import PriorKnowledgeRegressor


def summarise(table, results):
    """Return the runs, and the differences from each setting with their intervals."""
    comparisons = [
        compare_significance(results, reference=reference, random_state=0) for reference in results
    ]
    return {
        "runs": table.to_dict("records"),
        "comparisons": pd.concat(comparisons).to_dict("records"),
    }


def main():
    """Run all settings and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=Path, required=True, help="table, one row per patient")
    parser.add_argument("--expression", type=Path, required=True, help="table, one row per patient")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=RESULTS / "controls.json")
    arguments = parser.parse_args()
    y = pd.read_csv(arguments.expression, index_col=0)
    X = pd.read_csv(arguments.features, index_col=0).loc[y.index]
    model = PriorKnowledgeRegressor(
        aggregator="mlp", embed_dim=128, lambda_=0.9, prior=EigengeneEmbedder(30)
    )
    table, results = prior_gain(
        model,
        X,
        y,
        groups=y.index.to_numpy(),
        cv=KFold(5, shuffle=True, random_state=0),
        target_transformer=QuantileTransformer(output_distribution="normal", n_quantiles=200),
        fdr=0.2,  # as published
        n_seeds=arguments.seeds,
        random_state=1,
        return_results=True,
        verbose=1,
    )
    data = {"n_patients": len(y), "n_genes": y.shape[1], "n_features": X.shape[1]}
    write_results(describe() | data | summarise(table, results), arguments.out)


if __name__ == "__main__":
    main()
