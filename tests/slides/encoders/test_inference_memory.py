"""Devices without enough memory for a batch of tiles or for the model."""

# SPDX-License-Identifier: BSD-3-Clause

import subprocess
import sys
import textwrap
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_pk.slides import Encoder, FoundationFeaturizer
from sklearn_pk.slides._encoders import _weights as weights_module
from sklearn_pk.slides._encoders._inference import TileEncoder
from sklearn_pk.slides._encoders._registry import find_encoder
from sklearn_pk.slides._encoders._weights import find_weights, load_encoder

# Torch before 2.5 has it there only.
OutOfMemoryError = getattr(torch, "OutOfMemoryError", None) or torch.cuda.OutOfMemoryError


class Picky(nn.Module):
    """A model with memory for a few tiles only."""

    def __init__(self, most):
        super().__init__()
        self.most = most
        self.seen = []
        # Of failed batches, at the start of the next one.
        self.alive = []
        self._failed = []

    def __deepcopy__(self, memo):
        return self

    def forward(self, pixels):
        self.alive += [ref() is not None for ref in self._failed]
        self._failed.clear()
        self.seen.append(len(pixels))
        means = pixels.mean(dim=(2, 3))
        if len(pixels) > self.most:
            self._failed += [weakref.ref(pixels), weakref.ref(means)]
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return means


@pytest.fixture
def slides():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size=(n, 8, 8, 3), dtype=np.uint8) for n in (10, 3, 7)]


def describe(model):
    return Encoder("mine", model, 3, input_size=None)


def test_halved_batches_give_the_same_features_and_warn_once(slides):
    expected = FoundationFeaturizer(Picky(99)).fit_transform(slides)
    model = Picky(3)
    featurizer = FoundationFeaturizer(describe(model), batch_size=8, device="cpu").fit(slides)
    with pytest.warns(UserWarning, match="batch_size=8 does not fit") as caught:
        bags = featurizer.transform(slides)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    text = str(caught[0].message)
    assert text.startswith("batch_size=8 does not fit into the memory of cpu")
    assert "the encoder 'mine' continues with 2 tiles at once" in text
    assert "Pass batch_size=2 to start with it." in text
    for bag, other in zip(bags, expected, strict=True):
        np.testing.assert_allclose(bag.features, other.features, rtol=1e-6)
    # A size that did not fit is not tried again; batches are read as they were planned.
    assert model.seen == [8, 4, 2, 2, 2, 2, 2, 2, 1, 2, 2, 2, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        featurizer.set_params(batch_size=2).transform(slides)


def test_a_second_reduction_does_not_warn(slides):
    model = Picky(4)
    encode = TileEncoder(model, describe(model), batch_size=8)
    assert encode.batch_size == 8
    with pytest.warns(UserWarning, match="continues with 4 tiles at once"):
        encode(torch.from_numpy(slides[0][:8]))
    assert encode.batch_size == 4
    model.most = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        features = encode(torch.from_numpy(slides[0]))
    assert encode.batch_size == 1
    assert features.shape == (10, 3)


def test_without_a_batch_size(slides):
    model = Picky(5)
    encode = TileEncoder(model, describe(model))
    assert encode.batch_size is None
    with pytest.warns(UserWarning, match="batch_size=10 does not fit into .* Pass batch_size=5 to"):
        assert encode(torch.from_numpy(slides[0])).shape == (10, 3)
    assert encode.batch_size == 5


def test_tensors_of_a_failed_batch_are_released(slides):
    model = Picky(2)
    encode = TileEncoder(model, describe(model), batch_size=8)
    with pytest.warns(UserWarning, match="continues with 2 tiles at once"):
        encode(torch.from_numpy(slides[0][:8]))
    assert model.alive == [False] * 4


@pytest.mark.parametrize("errors", ["raise", "empty"])
def test_a_tile_that_does_not_fit_ends_the_run_but_keeps_the_store(slides, tmp_path, errors):
    model = Picky(2)
    featurizer = FoundationFeaturizer(
        describe(model), store=tmp_path, batch_size=2, errors=errors, device="cpu"
    )
    featurizer.fit(slides)
    forward = model.forward

    def shrinking(pixels):
        if len(model.seen) >= 6:  # in the second slide
            model.most = 0
        return forward(pixels)

    model.forward = shrinking
    with pytest.raises(
        MemoryError,
        match=r"A single tile does not fit into the memory of cpu.* with the encoder 'mine'. Use "
        r'dtype="bfloat16", another device or a smaller encoder',
    ) as caught:
        featurizer.transform(slides)
    assert isinstance(caught.value.__cause__, OutOfMemoryError)
    assert featurizer.throughput_["n_encoded"] == 1
    model.forward, model.most = forward, 2
    assert [len(bag) for bag in featurizer.transform(slides)] == [10, 3, 7]
    assert featurizer.throughput_["n_stored"] == 1


def test_a_smaller_dtype_is_only_suggested_once(slides):
    encode = TileEncoder(Picky(0), describe(Picky(0)), dtype="bfloat16")
    with pytest.raises(MemoryError, match="A single tile does not fit .* Use another device or"):
        encode(torch.from_numpy(slides[0]))


def test_batches_for_a_compiled_model_shrink_together(slides, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: model)
    model = Picky(4)
    encode = TileEncoder(model, describe(model), compile=True, batch_size=16)
    with pytest.warns(UserWarning, match="batch_size=16 .* continues with 4 tiles at once"):
        features = encode(torch.from_numpy(slides[1]))
    assert features.shape == (3, 3)
    encode(torch.from_numpy(slides[0]))
    # Filled up, it is the size that fails, not the three tiles in it.
    assert model.seen == [16, 8, 4, 4, 4, 4]


def test_memory_that_runs_out_while_a_model_is_compiled(slides, monkeypatch):
    class BackendCompilerFailed(RuntimeError):
        __module__ = "torch._dynamo.exc"

    def model(pixels):
        if len(pixels) > 4:
            raise BackendCompilerFailed("inductor raised: OutOfMemoryError: CUDA out of memory")
        return pixels.mean(dim=(2, 3))

    monkeypatch.setattr(torch, "compile", lambda model, dynamic: model)
    encode = TileEncoder(model, Encoder("mine", "", 3, input_size=None), compile=True, batch_size=8)
    with pytest.warns(UserWarning, match="continues with 4 tiles at once"):
        encode(torch.from_numpy(slides[0][:8]))


class Heavy(nn.Module):
    """A model that does not fit onto the device the first times."""

    def __init__(self, n_failures):
        super().__init__()
        self.n_failures = n_failures
        self.linear = nn.Linear(3, 3)

    def __deepcopy__(self, memo):
        return self

    def _apply(self, function):
        if self.n_failures:
            self.n_failures -= 1
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super()._apply(function)

    def forward(self, pixels):
        return self.linear(pixels.mean(dim=(2, 3)))


def test_a_model_that_does_not_fit(slides):
    featurizer = FoundationFeaturizer(describe(Heavy(99)), device="cpu")
    with pytest.raises(
        MemoryError,
        match=r"The weights of the encoder 'mine' \(0.0 GiB\) do not fit into the memory of cpu",
    ):
        featurizer.fit(slides)


def test_encoders_of_earlier_runs_are_released():
    known = find_encoder("efficientnet-lite0")
    load_encoder(known, find_weights(known, None), "cpu")
    assert weights_module._load.cache_info().currsize > 0
    model = Heavy(1)
    assert load_encoder(describe(model), None, "cpu") is model
    assert weights_module._load.cache_info().currsize == 0


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is Linux's")
def test_real_lack_of_memory():
    # A batch of 64 takes 33 MB for tiles as numbers, and 700 MB in the model.
    code = textwrap.dedent(
        """
        import resource, warnings
        import numpy as np, torch
        from torch import nn
        from sklearn_pk.slides import FoundationFeaturizer

        torch.set_num_threads(1)
        model = nn.Sequential(
            nn.Conv2d(3, 32, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        rng = np.random.default_rng(0)
        slides = [rng.integers(0, 256, size=(64, 208, 208, 3), dtype=np.uint8) for _ in range(2)]
        featurizer = FoundationFeaturizer(model, batch_size=64, device="cpu", num_workers=0)
        few = [slide[:2] for slide in slides]
        expected = featurizer.fit(few).set_params(batch_size=2).transform(few)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20,) * 2)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            bags = featurizer.set_params(batch_size=64).transform(slides)
        for bag, start in zip(bags, expected):
            np.testing.assert_allclose(bag.features[:2], start.features, rtol=1e-4)
        print(*[each.message for each in caught], sep="\\n")
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    assert line.startswith("batch_size=64 does not fit into the memory of cpu (")
    assert 1 <= int(line.split("continues with ")[1].split()[0]) <= 32
