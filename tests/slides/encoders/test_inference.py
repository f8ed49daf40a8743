"""The model on batches of tiles: preparation, precision, compiling, and what is measured."""

# SPDX-License-Identifier: BSD-3-Clause

import re
import shutil
import sysconfig
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from sklearn_pk.slides import Encoder, FoundationFeaturizer, SlideTiler
from sklearn_pk.slides._encoders._inference import TileEncoder, prepare_tiles
from sklearn_pk.slides._encoders._weights import load_encoder
from sklearn_pk.slides._encoding import Throughput
from sklearn_pk.utils._device import pick_dtype


def small_net():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 5, stride=4),
        torch.nn.GELU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 6),
    ).eval()


class Slow(torch.nn.Module):
    """A slow model."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, pixels):
        time.sleep(self.seconds)
        return pixels.mean(dim=(2, 3))


class Nothing(torch.nn.Module):
    """A model that returns infinity for dark tiles."""

    def forward(self, pixels):
        return pixels.mean(dim=(2, 3)).clamp(min=0).log()


@pytest.fixture
def tiles():
    return torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, size=(5, 40, 40, 3), dtype=np.uint8)
    )


@pytest.fixture
def tiled(small_slides):
    return SlideTiler(tile_size=64, random_state=0).fit_transform(small_slides)


@pytest.mark.parametrize(
    ("kwargs", "edge"),
    [
        ({"input_size": 16}, 16),
        ({"input_size": 48}, 48),
        ({"input_size": 40}, 40),
        ({"input_size": 48, "fixed_size": False}, 40),
        ({"input_size": 16, "fixed_size": False}, 16),
        ({"input_size": None}, 40),
    ],
)
def test_preparation_is_that_of_torchvision(tiles, kwargs, edge):
    encoder = Encoder("e", "", 3, mean=(0.7, 0.5, 0.6), std=(0.2, 0.25, 0.17), **kwargs)
    before = tiles.clone()
    pixels = prepare_tiles(tiles, encoder, "cpu")
    expected = tiles.permute(0, 3, 1, 2) / 255
    if edge != 40:
        expected = interpolate(expected, size=(edge, edge), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (encoder.mean, encoder.std))
    torch.testing.assert_close(pixels, (expected - mean) / std, rtol=1e-5, atol=1e-5)
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(tiles, before)


@pytest.mark.parametrize(
    ("shape", "size", "expected"), [((40, 20), 30, (30, 30)), ((20, 12), 30, (20, 12))]
)
def test_tiles_that_are_not_square(shape, size, expected):
    tiles = torch.zeros((1, *shape, 3), dtype=torch.uint8)
    encoder = Encoder("e", "", 3, input_size=size, fixed_size=False)
    assert prepare_tiles(tiles, encoder, "cpu").shape[2:] == expected


def test_transformed_tiles_are_left_as_they_are():
    pixels = torch.rand(2, 3, 8, 8)
    prepared = prepare_tiles(pixels, Encoder("e", "", 3, input_size=4), "cpu")
    assert torch.equal(prepared, pixels)


def test_own_transform_replaces_resizing_and_normalisation(tiled):
    def transform(image):
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 510

    encoder = Encoder(
        "mine",
        torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()),
        input_size=16,
        transform=transform,
    )
    bags = FoundationFeaturizer(encoder).fit_transform(tiled)
    for bag, slide in zip(bags, tiled, strict=True):
        expected = np.stack(list(slide.iter_tiles())).mean(axis=(1, 2)) / 510
        np.testing.assert_allclose(bag.features, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("bfloat16", 2e-2), ("float16", 2e-3), ("float32", 1e-6)]
)
def test_precision(tiles, dtype, tolerance):
    encoder = Encoder("e", small_net(), 6, input_size=None)
    with torch.inference_mode():
        exact = small_net()(prepare_tiles(tiles, encoder, "cpu"))
    features = TileEncoder(small_net(), encoder, dtype=dtype)(tiles)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, exact, rtol=tolerance, atol=tolerance)
    assert torch.equal(features, exact) == (dtype == "float32")


def test_weights_are_cast_once(tiles):
    encoder = Encoder("e", small_net(), 6, input_size=None)
    cast = load_encoder(encoder, None, "cpu", products="bfloat16")
    assert {weight.dtype for weight in cast.parameters()} == {torch.bfloat16}
    found, expected = (
        TileEncoder(model, encoder, dtype="bfloat16")(tiles) for model in (cast, small_net())
    )
    assert torch.equal(found, expected), "autocast rounds the same weights"
    normed = Encoder("e", torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Linear(4, 2)))
    dtypes = [
        each.dtype for each in load_encoder(normed, None, "cpu", None, "bfloat16").parameters()
    ]
    assert dtypes == [torch.float32] * 2 + [torch.bfloat16] * 2


def test_default_precision():
    assert pick_dtype("auto", "cpu") == "float32"
    assert pick_dtype("auto", "meta") == "float32"
    assert pick_dtype("float16", "cpu") == "float16"


def test_store_keeps_precisions_apart(tiled, tmp_path):
    stored = {}
    for dtype in ("auto", "bfloat16", "float32", "bfloat16"):
        featurizer = FoundationFeaturizer(small_net(), store=tmp_path, dtype=dtype)
        [bag] = featurizer.fit_transform(tiled[:1])
        stored[dtype] = featurizer.throughput_["n_stored"], bag.features
        assert featurizer.dtype_ == dtype.replace("auto", "float32")
    assert [stored[dtype][0] for dtype in ("auto", "float32", "bfloat16")] == [0, 1, 1]
    assert 0 < np.abs(stored["float32"][1] - stored["bfloat16"][1]).max() < 0.1


@pytest.mark.skipif(
    shutil.which("g++") is None or not Path(sysconfig.get_path("include"), "Python.h").exists(),
    reason="torch.compile needs a C++ compiler and the headers of Python",
)
def test_compiled_model_gives_the_same(tiled):
    plain = FoundationFeaturizer(small_net(), batch_size=8).fit_transform(tiled)
    compiled = FoundationFeaturizer(small_net(), batch_size=8, compile=True).fit_transform(tiled)
    # Three slides, so three batches of another size, which were filled up.
    assert {len(slide) % 8 for slide in tiled} != {0}
    for one, other in zip(plain, compiled, strict=True):
        np.testing.assert_allclose(one.features, other.features, rtol=1e-4, atol=1e-5)


def test_batches_for_a_compiled_model_are_of_one_size(tiles, monkeypatch):
    seen = []

    def model(pixels):
        seen.append((pixels.shape, pixels.stride()))
        return pixels.mean(dim=(2, 3))

    monkeypatch.setattr(torch, "compile", lambda model, dynamic: model)
    encoder = Encoder("e", "", 3, input_size=None)
    encode = TileEncoder(model, encoder, compile=True, batch_size=5)
    whole = encode(tiles)
    assert torch.equal(encode(tiles[:2]), whole[:2])
    assert seen == [((5, 3, 40, 40), (4800, 1, 120, 3))] * 2


def test_model_that_cannot_be_compiled(tiles, monkeypatch):
    from torch._inductor import config

    monkeypatch.setattr(config, "fx_graph_cache", False)
    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    encode = TileEncoder(
        small_net(), Encoder("mine", small_net(), 6, input_size=None), compile=True, batch_size=6
    )
    with pytest.raises(
        RuntimeError, match="torch cannot compile the encoder 'mine'.*compile=False"
    ):
        encode(tiles)


def test_errors_of_the_model_are_its_own(tiles):
    class Broken(torch.nn.Module):
        def forward(self, pixels):
            raise RuntimeError("wrong shape")

    encode = TileEncoder(Broken(), Encoder("mine", Broken(), 6))
    with pytest.raises(RuntimeError, match="^wrong shape$"):
        encode(tiles)


def test_features_that_are_not_finite(tiled, tmp_path):
    X = [tiled[0], np.zeros((2, 64, 64, 3), dtype=np.uint8)]
    featurizer = FoundationFeaturizer(Nothing(), store=tmp_path).fit(X)
    with pytest.raises(ValueError, match=r"not finite for \d+ of \d+ tiles, in float32"):
        featurizer.transform(X[1:])
    assert not any(tmp_path.iterdir())


def test_weights_that_changed_since_fit(tiled):
    module = small_net()
    featurizer = FoundationFeaturizer(module).fit(tiled)
    with torch.no_grad():
        module[0].bias += 1
    with pytest.raises(ValueError, match="changed since fit. Call fit again"):
        featurizer.transform(tiled)


def test_figures(tiled, tmp_path):
    n_tiles = [len(slide) for slide in tiled]
    featurizer = FoundationFeaturizer(small_net(), store=tmp_path, batch_size=4).fit(tiled)
    featurizer.transform(tiled[:1])
    featurizer.transform(tiled)
    figures = featurizer.throughput_
    assert (figures["n_slides"], figures["n_stored"], figures["n_encoded"]) == (3, 1, 2)
    assert figures["n_tiles"] == sum(n_tiles[1:])
    assert 0 < figures["seconds_model"] + figures["seconds_waiting"] < figures["seconds"]
    assert figures["tiles_per_second"] == pytest.approx(
        figures["n_tiles"] / (figures["seconds_model"] + figures["seconds_waiting"])
    )
    featurizer.transform(tiled)
    figures = featurizer.throughput_
    assert (figures["n_stored"], figures["n_tiles"], figures["bottleneck"]) == (3, 0, "")


def test_bottleneck(tiled):
    featurizer = FoundationFeaturizer(Slow(0.05), batch_size=4).fit(tiled)
    featurizer.transform(tiled)
    assert featurizer.throughput_["bottleneck"] == "model"

    def slow(image):
        time.sleep(0.02)
        return torch.zeros(3, 8, 8)

    encoder = Encoder("mine", Slow(0), transform=slow)
    featurizer = FoundationFeaturizer(encoder, batch_size=4).fit(tiled[:1])
    featurizer.transform(tiled[:1])
    assert featurizer.throughput_["bottleneck"] == "reading"


def test_looking_into_the_store_is_not_reading():
    throughput = Throughput(1)

    def batches():
        yield 1
        with throughput.measure("seconds_looking_up"):
            time.sleep(0.2)
        yield 2

    assert list(throughput.watch(batches())) == [1, 2]
    assert throughput.figures["seconds_looking_up"] > 0.2
    assert throughput.figures["seconds_waiting"] < 0.1


def test_the_first_batch_cannot_be_read_ahead():
    throughput = Throughput(1)

    def batches():
        time.sleep(0.2)
        yield 1
        yield 2

    assert list(throughput.watch(batches())) == [1, 2]
    assert throughput.figures["seconds_waiting"] < 0.1


def test_silent_by_default(tiled, capfd):
    FoundationFeaturizer(small_net()).fit_transform(tiled)
    assert capfd.readouterr() == ("", "")


def test_lines_on_standard_error(tiled, tmp_path, capfd):
    featurizer = FoundationFeaturizer(small_net(), store=tmp_path, verbose=1)
    featurizer.fit_transform(tiled)
    out, err = capfd.readouterr()
    assert out == ""
    # On a slow machine, progress has lines as well.
    err = re.sub("(?m)^Encoding: .*\n", "", err)
    assert err.count("\n") == 1
    assert "Encoded 3 of 3 slides (0 in the store), " in err
    assert "tiles/s=" in err
    assert "bottleneck=" in err
    featurizer.set_params(verbose=2).transform(tiled)
    lines = capfd.readouterr().err.splitlines()
    lines = [line for line in lines if not line.startswith("Encoding: ")]
    assert lines[0] == f"{tiled[0].path}: {len(tiled[0])} tiles from the store"
    assert lines[3:] == ["Encoded 0 of 3 slides (3 in the store)"]
