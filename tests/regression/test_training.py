"""Training: what is recorded, kept and read, and the defects of the released code."""

# SPDX-License-Identifier: BSD-3-Clause

import shutil
import sysconfig
import threading
from functools import partialmethod
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from skorch.callbacks import Callback, EarlyStopping

from sklearn_pk.metrics import pearson_by_gene
from sklearn_pk.regression import PriorKnowledgeRegressor, _training
from sklearn_pk.regression._regressor import tile_statistics
from sklearn_pk.regression._training import BagDataset, Batches, pad_bags
from sklearn_pk.slides import FeatureBag

NAMES = ["mlp", "transformer", "summary_mixing", "topk"]


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 6, 8)).astype(np.float32) + rng.normal(size=(60, 1, 8))
    X = X.astype(np.float32)
    y = 8 + X.mean(axis=1) @ rng.normal(size=(8, 30)) + rng.normal(size=(60, 30))
    return X, y.astype(np.float32)


def small(**parameters):
    defaults = {"max_epochs": 6, "depth": 1, "n_heads": 2, "head_dim": 4, "random_state": 0}
    return PriorKnowledgeRegressor(**(defaults | parameters))


def test_history_tells_loss_and_correlation_of_the_whole_validation_set(data):
    X, y = data
    # 17 held-out slides in batches of 16: the last batch has one slide, whose correlation is NaN.
    model = small(validation_fraction=17 / 60, max_epochs=4, batch_size=16, lr=1e-2).fit(X, y)
    held_out = model.validation_indices_
    assert len(held_out) == 17
    assert list(model.history_.columns) == ["epoch", "train_loss", "valid_loss", "valid_r", "dur"]
    assert list(model.history_["epoch"]) == [1, 2, 3, 4]
    best = model.history_.iloc[model.best_epoch_ - 1]
    predicted = model.predict(X[held_out])
    assert_allclose(np.mean((predicted - y[held_out]) ** 2), best["valid_loss"], rtol=1e-5)
    assert_allclose(pearson_by_gene(y[held_out], predicted).mean(), best["valid_r"], rtol=1e-4)


def test_defect_the_best_epoch_is_restored_not_the_last(data):
    X, y = data
    model = small(max_epochs=100, lr=0.02, patience=5, loss_tolerance=0.0).fit(X, y)
    history, held_out = model.history_, model.validation_indices_
    assert model.best_epoch_ < len(history) < 100
    loss = np.mean((model.predict(X[held_out]) - y[held_out]) ** 2)
    assert_allclose(loss, history["valid_loss"][model.best_epoch_ - 1], rtol=1e-5)
    assert abs(loss - history["valid_loss"].iloc[-1]) > 1e-3 * loss


def test_correlation_goes_on_where_the_loss_has_ended(data):
    X, y = data
    settings = {"max_epochs": 100, "lr": 0.02, "patience": 5}
    by_loss = small(early_stopping="loss", **settings).fit(X, y)
    both = small(early_stopping="loss+corr", loss_tolerance=100.0, **settings).fit(X, y)
    n_epochs = len(by_loss.history_)
    columns = ["train_loss", "valid_loss", "valid_r"]
    pd.testing.assert_frame_equal(by_loss.history_[columns], both.history_[columns][:n_epochs])
    assert len(both.history_) > n_epochs
    r = both.history_["valid_r"]
    later = r.iloc[n_epochs:]
    assert later.max() > r[by_loss.best_epoch_ - 1], "otherwise this test says nothing"
    assert both.best_epoch_ == later.idxmax() + 1


def test_defect_a_validation_set_of_one_slide_freezes_nothing(data):
    X, y = data
    options = {"max_epochs": 60, "lr": 1e-2, "patience": 3, "early_stopping": "loss+corr"}
    model = small(validation_fraction=0.01, **options).fit(X, y)
    assert len(model.validation_indices_) == 1
    assert model.history_["valid_r"].isna().all()
    assert model.best_epoch_ == model.history_["valid_loss"].idxmin() + 1 > 1
    assert len(model.history_) == model.best_epoch_ + 6, "two phases of three epochs each"


@pytest.mark.parametrize("aggregator", NAMES)
@pytest.mark.parametrize("width", [5, 12])
def test_defect_any_aggregator_takes_a_prior_and_any_width(data, aggregator, width):
    X, y = data
    X = np.concatenate([X, X], axis=2)[:, :, :width]
    model = small(aggregator=aggregator, prior=np.ones((30, 7)), device="cpu").fit(X, y)
    assert model.predict(X).shape == (60, 30)
    assert model.embed(X).shape == (60, max(width, 7))
    assert "layer.embeddings" in model.net_.module_.state_dict(), "saved with the weights"


def test_embeddings_are_not_trained(data):
    X, y = data
    G = np.random.default_rng(1).normal(size=(30, 8)).astype(np.float32)
    model = small(prior=G, scale_embeddings=False, max_epochs=3).fit(X, y)
    assert_array_equal(model.net_.module_.layer.embeddings.numpy(), G)


def test_initial_weights_follow_the_paper_times_init_scale(data):
    X, y = data
    for scale in (1.0, 0.1):
        model = small(init_scale=scale, max_epochs=1, lr=1e-12).fit(X, y)
        weight = model.net_.module_.layer.weight.detach().numpy()
        bound = scale / np.sqrt(8)
        assert 0.9 * bound < abs(weight).max() <= bound * (1 + 1e-5)
        assert_allclose(weight.std(), bound / np.sqrt(3), rtol=0.1)


def test_cosine_schedule(data):
    X, y = data
    seen = []

    class Rate(Callback):
        def on_epoch_begin(self, net, **kwargs):
            seen.append(net.optimizer_.param_groups[0]["lr"])

    small(lr_schedule="cosine", lr=0.1, max_epochs=4, callbacks=[Rate()]).fit(X, y)
    assert_allclose(seen, 0.05 * (1 + np.cos(np.pi * np.arange(4) / 4)))
    seen.clear()
    small(lr=0.1, callbacks=[Rate()]).fit(X, y)
    assert_allclose(seen, 0.1)


def test_callbacks_are_called_in_the_order_of_skorch(data):
    X, y = data

    class Recorder(Callback):
        def __init__(self):
            self.calls = []

        def record(self, name, net, **kwargs):
            self.calls.append((name, sorted(kwargs)))

    names = ("train_begin", "epoch_begin", "batch_begin", "grad_computed", "batch_end")
    for name in (*names, "epoch_end", "train_end"):
        setattr(Recorder, f"on_{name}", partialmethod(Recorder.record, name))
    recorder = Recorder()
    model = small(callbacks=[recorder], max_epochs=2, batch_size=30).fit(X, y)
    valid = [("batch_begin", ["batch", "training"])]
    train = [*valid, ("grad_computed", ["batch", "named_parameters", "training"])]
    end = [("batch_end", ["batch", "loss", "training", "y_pred"])]
    datasets = ["dataset_train", "dataset_valid"]
    epoch = [("epoch_begin", datasets), *2 * (train + end), *valid, *end, ("epoch_end", datasets)]
    expected = [("train_begin", ["X", "y"]), *epoch, *epoch, ("train_end", ["X", "y"])]
    assert recorder.calls == expected
    assert_array_equal(model.predict(X), small(max_epochs=2, batch_size=30).fit(X, y).predict(X))


def test_the_skorch_net_can_be_used(data):
    X, y = data
    model = small(max_epochs=2).fit(X, y)
    assert_allclose(model.net_.predict(X), model.predict(X), rtol=1e-4)
    assert_array_equal(model.net_.history[:, "train_loss"], model.history_["train_loss"])


def test_callbacks_may_end_training(data):
    X, y = data
    callback = EarlyStopping(patience=2, threshold=10.0)
    model = small(callbacks=[callback], max_epochs=50, lr=1e-5).fit(X, y)
    assert 2 <= len(model.history_) < 10


def test_a_callback_may_end_training_in_the_first_epoch(data):
    X, y = data

    class End(Callback):
        def on_epoch_end(self, net, **kwargs):
            raise KeyboardInterrupt

    model = small(callbacks=[End()]).fit(X, y)
    assert len(model.history_) == model.best_epoch_ == 1
    assert_array_equal(model.predict(X), small(max_epochs=1).fit(X, y).predict(X))


def test_callbacks_are_called_after_the_last_epoch(data):
    X, y = data

    class Count(Callback):
        n_epochs = 0

        def on_epoch_end(self, net, **kwargs):
            self.n_epochs += 1

    count = Count()
    model = small(callbacks=[count], patience=1, max_epochs=60, lr=0.05).fit(X, y)
    assert count.n_epochs == len(model.history_) < 60


def test_small_networks_train_on_one_thread(data):
    X, y = data
    seen, n_threads = [], torch.get_num_threads()

    class Threads(Callback):
        def on_batch_begin(self, net, **kwargs):
            seen.append(torch.get_num_threads())

    try:
        torch.set_num_threads(2)
        small(callbacks=[Threads()], max_epochs=1).fit(X, y)
        assert set(seen) == {1}
        seen.clear()
        wide = np.repeat(X, 400, axis=2)
        small(callbacks=[Threads()], max_epochs=1).fit(wide[:20], y[:20])
        assert set(seen) == {2}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(n_threads)


def test_interrupt_is_not_taken_for_the_end(data):
    X, y = data

    class Interrupt(Callback):
        def on_batch_end(self, net, training, **kwargs):
            if len(net.history) == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small(callbacks=[Interrupt()]).fit(X, y)


def test_bfloat16_is_close_to_float32(data):
    X, y = data
    exact = small(max_epochs=3, lr=1e-2).fit(X, y)
    rounded = small(max_epochs=3, lr=1e-2, dtype="bfloat16").fit(X, y)
    assert rounded.net_.module_.layer.weight.dtype == torch.float32
    difference = np.abs(exact.predict(X) - rounded.predict(X))
    assert 0 < difference.max() < 0.1 * y.std()


@pytest.mark.skipif(
    shutil.which("g++") is None or not Path(sysconfig.get_path("include"), "Python.h").exists(),
    reason="torch.compile needs a C++ compiler and the headers of Python",
)
def test_compiled_training_gives_the_same(data):
    X, y = data
    # One shape of batch, and one to train on: compiling takes its time for each.
    settings = {"max_epochs": 2, "lr": 1e-2, "batch_size": 20, "validation_fraction": 0}
    expected = small(**settings).fit(X, y)
    compiled = small(compile=True, **settings).fit(X, y)
    assert_allclose(compiled.predict(X), expected.predict(X), rtol=1e-3)
    assert not any(name.startswith("_orig_mod") for name in compiled.net_.module_.state_dict())


class Mean(torch.nn.Module):
    """An aggregator that knows no mask and changes the width."""

    def __init__(self, dim):
        super().__init__()
        self.dropout = torch.nn.Dropout(0.2)
        self.linear = torch.nn.Linear(dim, 11)

    def forward(self, x):
        return self.linear(self.dropout(x.mean(dim=1)))


class MaskedMax(torch.nn.Module):
    """An aggregator that knows a mask."""

    def __init__(self, dim=None):
        super().__init__()

    def forward(self, x, mask=None):
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), -torch.inf)
        return x.amax(dim=1)


@pytest.mark.parametrize("aggregator", [Mean, Mean(8), MaskedMax, MaskedMax()])
def test_own_aggregator(data, aggregator):
    X, y = data
    bags = [bag[: 2 + number % 5] for number, bag in enumerate(X)]
    model = small(aggregator=aggregator, prior=np.ones((30, 3)), lr=1e-2, max_epochs=20)
    model.fit(bags, y)
    assert_array_equal(model.predict(bags)[:3], model.predict(bags[:3]))
    assert_array_equal(model.predict(bags), small(**model.get_params()).fit(bags, y).predict(bags))
    assert model.score(bags, y) > 0.05
    assert model.embed(bags).shape == (60, 11 if "Mean" in str(aggregator) else 8)


def test_own_aggregator_keeps_its_weights_and_is_copied(data):
    X, y = data
    aggregator = Mean(8)
    before = aggregator.linear.weight.detach().clone()
    model = small(aggregator=aggregator, max_epochs=1, lr=0.1).fit(X, y)
    assert torch.equal(aggregator.linear.weight, before), "the user's module is left alone"
    start = small(aggregator=aggregator, max_epochs=1, lr=1e-12).fit(X, y)
    weights = start.net_.module_.aggregator.module.linear.weight
    torch.testing.assert_close(weights, before)
    assert not torch.allclose(model.net_.module_.aggregator.module.linear.weight, before)


@pytest.mark.parametrize(
    ("aggregator", "error", "message"),
    [
        (torch.nn.Identity(), ValueError, r"to \(batch, d\), got \(1, 6, 8\) for an input"),
        (Mean(9), ValueError, r"aggregator: Mean cannot take a bag of shape \(1, 6, 8\)"),
        (
            dict,
            TypeError,
            "expected a name, a torch.nn.Module or a subclass of it, got <class 'dict'>",
        ),
    ],
)
def test_aggregators_that_are_none(data, aggregator, error, message):
    with pytest.raises(error, match=message):
        small(aggregator=aggregator).fit(*data)


def test_positions_of_tiles_matter_only_where_asked_for(data):
    X, y = data
    turned = X[:, ::-1]
    plain = small(aggregator="summary_mixing").fit(X, y)
    assert_allclose(plain.predict(turned), plain.predict(X), rtol=1e-5)
    model = small(aggregator="summary_mixing", compat="sequoia", lr=1e-2).fit(X, y)
    assert model.net_.module_.positions.shape == (6, 8)
    assert not np.allclose(model.predict(turned), model.predict(X), rtol=1e-4)
    assert model.predict(X[:, :4]).shape == (60, 30)
    module = model.net_.module_
    assert not module.feature_mean.any()
    assert not module.target_mean.any()
    with pytest.raises(ValueError, match="bag 0 has 7 tiles, .* 6 positions"):
        model.predict(np.concatenate([X, X[:, :1]], axis=1))


def test_positive(data):
    X, y = data
    y = y - 8
    model = small(lr=1e-2).fit(X, y)
    raised = small(lr=1e-2, positive=True).fit(X, y)
    assert model.predict(X).min() < 0
    assert_array_equal(raised.predict(X), np.maximum(model.predict(X), 0))
    assert raised.predict_untrained(X).min() >= 0


def test_predict_frame(data):
    X, y = data
    frame = pd.DataFrame(y, columns=[f"g{number}" for number in range(30)])
    model = small().fit(X, frame)
    bags = [FeatureBag(bag, slide=f"slides/{number}.svs") for number, bag in enumerate(X[:3])]
    predicted = model.predict_frame(bags)
    assert list(predicted.index) == ["slides/0.svs", "slides/1.svs", "slides/2.svs"]
    assert list(predicted.columns) == list(frame.columns)
    assert_array_equal(predicted.to_numpy(), model.predict(X[:3]))
    unnamed = small().fit(X, y[:, 0]).predict_frame(X)
    assert unnamed.shape == (60, 1)


def test_embed_is_what_the_layer_sees(data):
    X, y = data
    for aggregator in NAMES[:3]:
        model = small(aggregator=aggregator, prior=np.ones((30, 3))).fit(X, y)
        module = model.net_.module_
        w = torch.from_numpy(model.embed(X).astype(np.float32))
        expected = module.target_mean + module.target_scale * module.layer(w)
        assert_allclose(model.predict(X), expected.detach(), rtol=1e-4, atol=1e-4)


def test_expression_is_float32_inside(data):
    X, y = data
    model = small().fit(X, y.astype(np.float64))
    assert_allclose(model.predict(X), small().fit(X, y).predict(X), rtol=1e-4)
    assert {p.dtype for p in model.net_.module_.state_dict().values()} == {torch.float32}


@pytest.fixture
def files(data, tmp_path):
    X, _ = data
    bags = []
    for number, tiles in enumerate(X):
        path = tmp_path / f"S{number:02d}.pt"
        torch.save(torch.from_numpy(tiles[: 2 + number % 5].copy()), path)
        bags.append(FeatureBag.from_file(path))
    return bags


def test_bags_in_files_give_the_same_as_in_memory(data, files, monkeypatch):
    _, y = data
    in_memory = [np.asarray(bag) for bag in files]
    expected = small(aggregator="summary_mixing").fit(in_memory, y)
    readers = set()
    batch = BagDataset.batch

    def watched(self, *arguments):
        readers.add(threading.current_thread() is threading.main_thread())
        return batch(self, *arguments)

    monkeypatch.setattr(BagDataset, "batch", watched)
    model = small(aggregator="summary_mixing").fit(files, y)
    assert readers == {False}, "read by another thread while this one trains"
    assert_array_equal(model.predict(files), expected.predict(in_memory))
    assert_array_equal(model.embed(files), expected.embed(in_memory))


def test_bags_in_files_that_are_bad(data, files, tmp_path):
    _, y = data
    torch.save(torch.full((3, 8), torch.nan), tmp_path / "S05.pt")
    files[5] = FeatureBag.from_file(tmp_path / "S05.pt")
    with pytest.raises(ValueError, match=r"bag 5 \(.*S05.*\) has no tile"):
        small().fit(files, y)
    torch.save(torch.ones(3, 7), tmp_path / "S05.pt")
    files[5] = FeatureBag.from_file(tmp_path / "S05.pt")
    with pytest.raises(ValueError, match=r"bag 5 \(.*S05.*\) has 7 features per tile"):
        small().fit(files, y)
    (tmp_path / "S07.pt").unlink()
    with pytest.raises(FileNotFoundError, match="S07"):
        small(standardize=False).fit(files[6:], y[6:])


def test_batches():
    bags = [np.full((1 + number % 3, 2), number, dtype=np.float32) for number in range(7)]
    targets = np.arange(7, dtype=np.float32)[:, None]
    dataset = BagDataset(bags, targets, np.array([6, 5, 4, 3, 2]))
    batches = Batches(dataset, 2)
    assert len(batches) == 3
    assert [y[:, 0].tolist() for _, y in batches] == [[6, 5], [4, 3], [2]]
    shuffled = Batches(dataset, 2, torch.Generator().manual_seed(0))
    rounds = [[int(v) for _, y in shuffled for v in y] for _ in range(2)]
    assert sorted(rounds[0]) == sorted(rounds[1]) == [2, 3, 4, 5, 6]
    assert rounds[0] != rounds[1]
    features, mask = dataset[0][0]
    assert features.shape == (1, 1, 2)
    assert mask is None


def test_pad_bags():
    features, mask = pad_bags([np.ones((2, 3)), np.full((1, 3), 2.0)])
    assert features.dtype == torch.float32
    assert features.tolist() == [[[1] * 3, [1] * 3], [[2] * 3, [0] * 3]]
    assert mask.tolist() == [[True, True], [True, False]]


def test_tile_statistics_of_huge_offsets():
    rng = np.random.default_rng(0)
    bags = [rng.normal(2e4, 0.01, size=(1 + n, 3)).astype(np.float32) for n in range(9)]
    bags = [np.column_stack([bag, np.full(len(bag), 0.1, np.float32)]) for bag in bags]
    mean, scale = tile_statistics(bags, range(9))
    tiles = np.concatenate(bags).astype(np.float64)
    assert_allclose(mean, tiles.mean(axis=0), rtol=1e-12)
    assert_allclose(scale[:3], tiles.std(axis=0)[:3], rtol=1e-6)
    assert scale[3] == 1


@pytest.mark.parametrize("aggregator", ["mlp", "attention", "transformer"])
def test_long_bags_are_not_padded_to_the_longest(monkeypatch, aggregator):
    rng = np.random.default_rng(0)
    X = [rng.normal(size=(size, 6)).astype(np.float32) for size in (60, 2, 3, 29, 2, 5, 4, 3)]
    y = rng.normal(size=(8, 5))
    options = {"aggregator": aggregator, "depth": 1, "n_heads": 2, "head_dim": 4, "lr": 1e-2}
    options |= {"validation_fraction": 0.4, "random_state": 0, "max_epochs": 3, "device": "cpu"}
    expected = PriorKnowledgeRegressor(**options).fit(X, y)
    shapes, pad = [], _training.pad_bags
    monkeypatch.setattr(
        _training, "pad_bags", lambda bags: shapes.append(list(map(len, bags))) or pad(bags)
    )
    monkeypatch.setattr(_training, "_LONG_BAG", 50)
    model = PriorKnowledgeRegressor(**options).fit(X, y)
    assert any(len(shape) == 1 and shape[0] == 60 for shape in shapes)
    assert_allclose(model.predict(X), expected.predict(X), rtol=1e-4, atol=1e-5)


def test_tiles_are_drawn_anew():
    dataset = BagDataset(
        [np.arange(20.0)[:, None], np.ones((2, 1))], np.zeros((2, 1)), np.arange(2)
    )
    batches = Batches(dataset, 2, torch.Generator().manual_seed(0), n_tiles=5)
    seen = []
    for _ in range(30):
        [((features, mask), _)] = list(batches)
        assert sorted(mask.sum(dim=1).tolist()) == [2, 5]
        seen.append(set(features[mask.sum(dim=1) == 5].ravel().tolist()))
        assert len(seen[-1]) == 5, "without replacement"
    assert set.union(*seen) == set(range(20))
    held_out = [list(Batches(dataset, 2, n_tiles=5))[0][0][0].ravel().tolist() for _ in range(2)]
    assert held_out[0] == held_out[1]
    assert held_out[0][:5] == [0, 4, 9, 14, 19]


def test_drawn_tiles_in_a_fit(data):
    X, y = data
    X = np.stack([tiles[:5] for tiles in X])
    options = {"max_epochs": 2, "random_state": 0, "device": "cpu"}
    models = [PriorKnowledgeRegressor(n_tiles=n, **options).fit(X, y) for n in (None, 5, 2)]
    predicted = [model.predict(X) for model in models]
    assert_array_equal(predicted[0], predicted[1])
    assert np.abs(predicted[0] - predicted[2]).max() > 1e-4
    # The mean over chunks, weighted by their tiles.
    models[2]._n_tiles = None
    parts = [models[2].predict(X[:3, first::3]) * (2, 2, 1)[first] / 5 for first in range(3)]
    assert_allclose(predicted[2][:3], sum(parts), rtol=1e-5)
    with pytest.raises(ValueError, match="n_tiles=2 draws tiles, but with compat='sequoia'"):
        PriorKnowledgeRegressor(n_tiles=2, compat="sequoia", **options).fit(X, y)


def test_dtype_for_the_device():
    with _training.autocast("auto", "cpu") as context:
        assert context is None
