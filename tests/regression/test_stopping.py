"""The stopping rule, and the correlation it looks at."""

# SPDX-License-Identifier: BSD-3-Clause

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from sklearn_pk.metrics import pearson_by_gene
from sklearn_pk.regression._training import StoppingRule, mean_correlation

NAN = math.nan


def run(rule, losses, scores=None):
    """Feed a rule until it stops; return the epochs that were best in turn, and the last one."""
    best = []
    for epoch, loss in enumerate(losses, start=1):
        if rule.update(epoch, loss, NAN if scores is None else scores[epoch - 1]):
            best.append(epoch)
        if rule.stopped:
            break
    return best, epoch


def test_loss():
    rule = StoppingRule("loss", 3, 0.5)
    assert run(rule, [5, 4, 4.5, 3, 3, 3.1, 3.2, 1]) == ([1, 2, 4], 7)
    assert (rule.best_epoch, rule.best_loss) == (4, 3)


def test_none_never_stops_and_keeps_the_lowest_loss():
    assert run(StoppingRule(None, 1, 0.5), [3, 2, 4, 5, 1, 6]) == ([1, 2, 5], 6)


def test_loss_then_correlation():
    # Phase 1 ends after epoch 4 = 2 + patience; epoch 5 has a better correlation, 6 none, and
    # 7 a better one again, after which three epochs bring nothing.
    losses = [2, 1, 1.1, 1.1, 1.2, 1.2, 1.3, 1.3, 1.3, 1.3]
    scores = [0.1, 0.2, 0.9, 0.9, 0.3, 0.3, 0.4, 0.1, 0.1, 0.4, 0.9]
    rule = StoppingRule("loss+corr", 2, 0.5)
    assert run(rule, losses, scores) == ([1, 2, 5, 7], 9)
    assert (rule.best_epoch, rule.best_loss, rule.best_score) == (7, 1.3, 0.4)


def test_defect_a_better_correlation_counts_only_within_the_tolerance():
    losses = [1, 2, 2, 1.6, 1.5, 2, 2, 2]
    scores = [0.1, 0.1, 0.1, 0.9, 0.2, 0.9, 0.9, 0.9]
    rule = StoppingRule("loss+corr", 2, 0.5)
    assert run(rule, losses, scores)[0] == [1, 5]
    assert run(StoppingRule("loss+corr", 2, 1.0), losses, scores)[0] == [1, 4]


def test_defect_stopping_fires_where_the_score_stalls_before_the_loss():
    # The correlation never rises again while the loss falls now and then.
    losses = [3, 2, 2.1, 2.1, 1.9, 1.9, 1.8, 1.8, 1.7, 1.7]
    scores = [0.1, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    assert run(StoppingRule("loss+corr", 2, 0.5), losses, scores) == ([1, 2], 6)


def test_epochs_outside_the_tolerance_are_counted_in_all():
    losses = [1, 2, 2, 3, 1.1, 3, 1.1, 3, 1.1, 1.1]
    scores = [0.1, 0, 0, 0, 0.2, 0, 0.3, 0, 0.4, 0.5]
    # Epochs 4 and 6 are outside; each better one in between restarts the patience.
    assert run(StoppingRule("loss+corr", 2, 0.5), losses, scores) == ([1, 5], 6)
    assert run(StoppingRule("loss+corr", 3, 0.5), [1, *losses], [0.1, *scores])[1] == 9


def test_defect_a_correlation_that_is_no_number_freezes_nothing():
    losses = [3, 2, 1, 1.5, 1.5, 1.5, 1.5]
    assert run(StoppingRule("loss+corr", 2, 0.5), losses) == ([1, 2, 3], 7)
    scores = [NAN, NAN, NAN, NAN, NAN, 0.2, NAN]
    assert run(StoppingRule("loss+corr", 2, 0.5), losses, scores)[0] == [1, 2, 3, 6]


def test_loss_that_is_no_number_is_never_the_best():
    assert run(StoppingRule("loss", 2, 0.5), [NAN, NAN, NAN]) == ([], 2)
    assert run(StoppingRule("loss+corr", 2, 0.5), [1, NAN, NAN, NAN, NAN], [0.1, 1, 1, 1, 1]) == (
        [1],
        5,
    )


def test_mean_correlation():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(20, 6)).astype(np.float32)
    predicted = 0.3 * truth + rng.normal(size=(20, 6)).astype(np.float32)
    truth[:, 2] = 5.0
    predicted[:, 4] = 1.0
    r = pearson_by_gene(truth, predicted)
    expected = np.delete(np.where(np.isnan(r), 0, r), 2).mean()
    result = mean_correlation(torch.from_numpy(truth), torch.from_numpy(predicted))
    assert_allclose(float(result), expected, rtol=1e-5)
    stacked = mean_correlation(
        torch.from_numpy(truth), torch.from_numpy(np.stack([predicted, -predicted]))
    )
    assert_allclose(stacked, [expected, -expected], rtol=1e-5)


@pytest.mark.parametrize("n_samples", [1, 4])
def test_mean_correlation_without_any_gene_that_varies(n_samples):
    assert math.isnan(mean_correlation(torch.ones(n_samples, 3), torch.randn(n_samples, 3)))


@pytest.mark.parametrize("scale", [1e-12, 1e10])
def test_mean_correlation_does_not_depend_on_the_unit(scale):
    rng = np.random.default_rng(0)
    truth, predicted = (torch.from_numpy(rng.normal(size=(20, 6))).float() for _ in range(2))
    expected = mean_correlation(truth, predicted)
    assert_allclose(mean_correlation(scale * truth, scale * predicted), expected, rtol=1e-5)


def test_correlations_that_differ_by_rounding_are_equal():
    losses, scores = [1, 1.1, 1.1, 1.1, 1.1], [0.5, 0.5, 0.5, 0.5000001, 0.51]
    assert run(StoppingRule("loss+corr", 2, 0.5), losses, scores)[0] == [1, 5]
