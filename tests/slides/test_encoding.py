"""Encoding in workers: what is sent to them, and what they return."""

# SPDX-License-Identifier: BSD-3-Clause

import time

import joblib
import numpy as np
import pytest
import torch

from sklearn_pk.slides import FoundationFeaturizer

TILES = [np.full((6, 8, 8, 3), 40 * number, dtype=np.uint8) for number in range(4)]


def test_what_is_sent_is_the_same_in_each_call():
    module = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    featurizer = FoundationFeaturizer(module, device="cpu").fit(TILES)
    first = featurizer._make_slide_encoder().pack()
    featurizer.transform(TILES)
    assert np.array_equal(featurizer._make_slide_encoder().pack(), first)
    assert featurizer.n_jobs is None
    assert featurizer.throughput_["n_encoded"] == 4


def test_smaller_batches_of_a_worker_are_reported():
    # Workers that were small: joblib replaces them with a warning once torch is imported there.
    joblib.Parallel(n_jobs=2)(joblib.delayed(time.sleep)(0.1) for _ in range(30))

    class Hungry(torch.nn.Module):
        def forward(self, pixels):
            if len(pixels) > 2:
                raise RuntimeError("CUDA error: out of memory")
            return pixels.mean(dim=(2, 3))

    featurizer = FoundationFeaturizer(Hungry(), device="cpu", n_jobs=2, batch_size=6).fit(TILES)
    with pytest.warns(UserWarning, match="batch_size=6 did not fit .* of a worker") as caught:
        bags = featurizer.transform(TILES)
    assert len(caught) == 1
    assert featurizer.throughput_["batch_size"] == 2
    assert [bag.shape for bag in bags] == [(6, 3)] * 4
