"""Published SEQUOIA checkpoints, against the outputs of the reference modules."""

# SPDX-License-Identifier: BSD-3-Clause

import os
import pickle
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.torch import save_file
from sklearn.pipeline import make_pipeline

from sklearn_pk.regression import load_sequoia
from sklearn_pk.slides import SuperTileClusterer

DATA = Path(__file__).parents[1] / "data"
NAMES = ["summary_mixing", "transformer"]
MIXER = "transformer.layers.0.0.mixers"
QKV = "transformer.layers.0.0.to_qkv.weight"


def load_golden(name):
    golden = np.load(DATA / f"{name}.npz")
    prefix = "param/"
    state = {
        key.removeprefix(prefix): torch.from_numpy(golden[key])
        for key in golden.files
        if key.startswith(prefix)
    }
    return state, golden["x"], golden["y"]


def wide_transformer(inner=128, dim=8, n_tiles=5, n_genes=3):
    generator = torch.Generator().manual_seed(0)
    attention, feed_forward = "transformer.layers.0.0", "transformer.layers.0.1.net"
    shapes = {"pos_emb1D": (n_tiles, dim)}
    shapes |= {f"{attention}.to_qkv.weight": (3 * inner, dim)}
    shapes |= {f"{attention}.to_out.weight": (dim, inner)}
    shapes |= {f"{feed_forward}.{number}.weight": (dim, dim) for number in (1, 3)}
    shapes |= {f"{feed_forward}.{number}.bias": (dim,) for number in (1, 3)}
    for norm in (f"{attention}.norm", f"{feed_forward}.0", "linear_head.0"):
        shapes |= {f"{norm}.weight": (dim,), f"{norm}.bias": (dim,)}
    shapes |= {"linear_head.1.weight": (n_genes, dim), "linear_head.1.bias": (n_genes,)}
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", NAMES)
def test_golden_outputs(name):
    state, x, y = load_golden(name)
    model = load_sequoia(state, n_heads=4)
    assert (model.aggregator, model.depth, model.n_heads, model.head_dim) == (name, 2, 4, 8)
    assert model.n_features_in_ == 32
    assert_allclose(model.predict(x), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_all_forms_of_a_checkpoint_agree(name, tmp_path):
    state, x, y = load_golden(name)
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "wrapped.pth")
    save_file(state, tmp_path / "model.safetensors")
    forms = [
        {key: value.numpy() for key, value in state.items()},
        {key: torch.nn.Parameter(value) for key, value in state.items()},
        {key: value.double() for key, value in state.items()},
        tmp_path / "plain.pt",
        str(tmp_path / "wrapped.pth"),
        tmp_path / "model.safetensors",
    ]
    for form in forms:
        assert_allclose(load_sequoia(form, n_heads=4).predict(x), y, rtol=1e-5, atol=1e-5)


def test_the_checkpoint_is_not_touched():
    state, x, y = load_golden("summary_mixing")
    before = {key: value.clone() for key, value in state.items()}
    model = load_sequoia(state)
    with torch.no_grad():
        for parameter in model.net_.module_.parameters():
            parameter.zero_()
    assert all(torch.equal(state[key], before[key]) for key in state)
    assert_allclose(load_sequoia(state).predict(x), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("container", [list, np.array, pd.Index, pd.Series])
def test_gene_names(container):
    state, x, y = load_golden("summary_mixing")
    names = [f"gene{number}" for number in range(50)]
    frame = load_sequoia(state, gene_names=container(names)).predict_frame(x)
    assert list(frame.columns) == names
    assert_allclose(frame, y, rtol=1e-5, atol=1e-5)
    assert list(load_sequoia(state).predict_frame(x).columns) == list(range(50))


def test_heads_of_summary_mixing_are_counted():
    state, *_ = load_golden("summary_mixing")
    assert load_sequoia(state).n_heads == 4
    with pytest.raises(ValueError, match="n_heads: state_dict has 4 heads, got 2"):
        load_sequoia(state, n_heads=2)


def test_heads_of_a_transformer():
    state = wide_transformer(inner=128)
    x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
    model = load_sequoia(state)
    assert (model.n_heads, model.head_dim, model.depth) == (2, 64, 1)
    assert_array_equal(model.predict(x), load_sequoia(state, n_heads=2).predict(x))
    assert not np.allclose(model.predict(x), load_sequoia(state, n_heads=4).predict(x))
    message = "attention of state_dict is 32 wide, which is not a number of heads of 64. Pass the"
    with pytest.raises(ValueError, match=f"n_heads: the {message} number of heads"):
        load_sequoia(load_golden("transformer")[0])
    with pytest.raises(ValueError, match="is 96 wide, which is not a number of heads of 64"):
        load_sequoia(wide_transformer(inner=96))


@pytest.mark.parametrize("n_heads", [3, 0, -4, 64])
def test_heads_that_do_not_divide(n_heads):
    state, *_ = load_golden("transformer")
    with pytest.raises(ValueError, match=f"32 wide, which is not {n_heads} equal heads"):
        load_sequoia(state, n_heads=n_heads)


@pytest.mark.parametrize("name", NAMES)
def test_untrained_baseline(name):
    state, x, y = load_golden(name)
    model = load_sequoia(state, n_heads=4)
    untrained = model.predict_untrained(x)
    assert untrained.shape == y.shape
    assert np.abs(untrained - y).max() > 0.1
    assert_array_equal(untrained, load_sequoia(state, n_heads=4).predict_untrained(x))


@pytest.mark.parametrize("name", NAMES)
def test_fewer_tiles_take_the_first_positions(name):
    state, x, _ = load_golden(name)
    model = load_sequoia(state, n_heads=4)
    short = load_sequoia(state | {"pos_emb1D": state["pos_emb1D"][:7]}, n_heads=4)
    few = [x[0, :7], x[1, :3]]
    assert_array_equal(model.predict(few), short.predict(few))
    other = load_sequoia(state | {"pos_emb1D": state["pos_emb1D"].flip(0)}, n_heads=4)
    assert not np.allclose(model.predict(few), other.predict(few))


@pytest.mark.parametrize("name", NAMES)
def test_more_tiles_than_positions(name):
    state, x, _ = load_golden(name)
    model = load_sequoia(state, n_heads=4)
    many = [x[0], np.concatenate([x[1], x[2]])]
    for predict in (model.predict, model.predict_untrained, model.embed):
        with pytest.raises(ValueError, match="bag 1 has 20 tiles, .* 10 positions"):
            predict(many)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_tiles_matters(name):
    state, x, _ = load_golden(name)
    model = load_sequoia(state, n_heads=4)
    assert not np.allclose(model.predict(x), model.predict(x[:, ::-1]), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("summary_mixing", "pos_emb1D"),
        ("summary_mixing", "linear_head.1.weight"),
        ("summary_mixing", f"{MIXER}.0.f.weight"),
        ("transformer", QKV),
    ],
)
def test_no_checkpoint_of_sequoia(name, key):
    state, *_ = load_golden(name)
    del state[key]
    message = re.escape(f"state_dict is not a SEQUOIA checkpoint: it has no {key!r}, but '")
    with pytest.raises(ValueError, match=message):
        load_sequoia(state, n_heads=4)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("summary_mixing", "linear_head.0.bias"),
        ("summary_mixing", f"{MIXER}.3.f.weight"),
        ("summary_mixing", "transformer.layers.1.0.projection.bias"),
        ("transformer", "transformer.layers.1.1.net.3.weight"),
        ("transformer", "transformer.layers.1.0.to_qkv.weight"),
    ],
)
def test_missing_keys(name, key):
    state, *_ = load_golden(name)
    del state[key]
    with pytest.raises(ValueError, match=re.escape(f"checkpoint; missing keys: {key!r}.")):
        load_sequoia(state, n_heads=4)


@pytest.mark.parametrize("key", ["extra", "transformer.layers.x.0", "transformer.layers.", "a.b"])
@pytest.mark.parametrize("name", NAMES)
def test_unexpected_keys(name, key):
    state, *_ = load_golden(name)
    with pytest.raises(ValueError, match=re.escape(f"checkpoint; unexpected keys: {key!r}.")):
        load_sequoia(state | {key: torch.ones(2)}, n_heads=4)


def test_mixed_kinds_of_blocks():
    state, *_ = load_golden("summary_mixing")
    other, *_ = load_golden("transformer")
    state = {key: value for key, value in state.items() if "layers.1.0." not in key}
    state |= {key: value for key, value in other.items() if "layers.1.0." in key}
    with pytest.raises(
        ValueError, match=r"(?s)missing keys: .*layers\.1\.0\.mixers.*unexpected keys: .*to_out"
    ):
        load_sequoia(state)


@pytest.mark.parametrize(
    ("name", "key", "expected"),
    [
        ("summary_mixing", "linear_head.1.bias", (50,)),
        ("summary_mixing", "transformer.layers.1.0.mixers.2.c.weight", (8, 16)),
        ("summary_mixing", "transformer.layers.0.1.net.1.weight", (32, 32)),
        ("transformer", "transformer.layers.0.0.to_out.weight", (32, 32)),
        ("transformer", "transformer.layers.1.0.to_qkv.weight", (96, 32)),
    ],
)
def test_wrong_shapes(name, key, expected):
    state, *_ = load_golden(name)
    got = (expected[0] - 1, *expected[1:])
    message = re.escape(f"state_dict: {key!r} should have shape {expected} to go with the other")
    with pytest.raises(ValueError, match=message + re.escape(f" tensors, got {got}.")):
        load_sequoia(state | {key: state[key][:-1]}, n_heads=4)
    with pytest.raises(ValueError, match=message):
        load_sequoia(state | {key: torch.tensor(1.0)}, n_heads=4)


@pytest.mark.parametrize("key", ["pos_emb1D", "linear_head.1.weight", QKV])
def test_wrong_number_of_dimensions(key):
    state, *_ = load_golden("transformer")
    message = re.escape(f"{key!r} should have 2 dimensions, got (32,).")
    with pytest.raises(ValueError, match=message):
        load_sequoia(state | {key: state[key][0]}, n_heads=4)


@pytest.mark.parametrize("value", [object(), None, "text", np.array(["text"])])
def test_no_tensors(value):
    state, *_ = load_golden("transformer")
    with pytest.raises(ValueError, match="state_dict: expected tensors only"):
        load_sequoia(state | {"linear_head.1.bias": value}, n_heads=4)
    with pytest.raises(TypeError, match="expected a path or a mapping .* to tensors, got list"):
        load_sequoia(list(state.items()))


def test_files_of_something_else(tmp_path):
    path = tmp_path / "numbers.pt"
    torch.save({"pos_emb1D": 3}, path)
    with pytest.raises(ValueError, match=r"numbers\.pt does not hold a dictionary of tensors"):
        load_sequoia(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"numbers\.pt is not a file of tensors"):
        load_sequoia(path)


def test_missing_file(tmp_path):
    path = tmp_path / "none.pt"
    with pytest.raises(FileNotFoundError, match=f"Checkpoint not found: '{path}'"):
        load_sequoia(path)


def test_errors_name_the_file(tmp_path):
    state, *_ = load_golden("summary_mixing")
    torch.save(state | {"extra": torch.ones(1)}, tmp_path / "a.pt")
    with pytest.raises(
        ValueError, match=r"a\.pt' does not have the keys .* unexpected keys: 'extra'"
    ):
        load_sequoia(tmp_path / "a.pt")


def test_code_in_a_file_is_not_executed(tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "evil.pt"
    torch.save({"pos_emb1D": Payload(str(trace))}, path)
    with pytest.raises(ValueError, match=r"evil\.pt is not a file of tensors"):
        load_sequoia(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "the file does hold code"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b"], "predicts 50 genes, got 2 names, 2 of them different"),
        (["a", *map(str, range(50))], "predicts 50 genes, got 51 names, 51 of them different"),
        (["0", *map(str, range(49))], "predicts 50 genes, got 50 names, 49 of them different"),
        ([], "predicts 50 genes, got 0 names"),
    ],
)
def test_wrong_gene_names(names, message):
    state, *_ = load_golden("summary_mixing")
    with pytest.raises(ValueError, match=f"gene_names: the checkpoint {message}"):
        load_sequoia(state, gene_names=names)


def test_wrong_width_of_features():
    state, x, _ = load_golden("summary_mixing")
    with pytest.raises(ValueError, match="X has 5 features, but PriorKnowledgeRegressor is exp"):
        load_sequoia(state).predict(x[:, :, :5])


def test_absent_device():
    state, *_ = load_golden("summary_mixing")
    with pytest.raises(ValueError, match="device='cuda:99' is not available here"):
        load_sequoia(state, device="cuda:99")


@pytest.fixture
def folder(tmp_path):
    """Return a folder with three folds as they are published, and the genes."""
    for fold in range(3):
        state, _, _ = load_golden("summary_mixing")
        generator = torch.Generator().manual_seed(fold)
        state["linear_head.1.bias"] = torch.randn(
            len(state["linear_head.1.bias"]), generator=generator
        )
        (tmp_path / f"fold_{fold}").mkdir()
        save_file(state, tmp_path / f"fold_{fold}" / "model.safetensors")
        torch.save(state, tmp_path / f"fold_{fold}" / "pytorch_model.bin")
    n_genes = len(state["linear_head.1.bias"])
    table = pd.DataFrame({"gene": [f"rna_G{number}" for number in range(n_genes)]})
    table.to_csv(tmp_path / "gene_list.csv")
    return tmp_path


def test_folder_of_folds_is_averaged_in_a_pipeline_without_fit(folder):
    _, x, _ = load_golden("summary_mixing")
    model = load_sequoia(folder)
    files = [folder / f"fold_{fold}" / "model.safetensors" for fold in range(3)]
    expected = np.mean([load_sequoia(path).predict(x) for path in files], axis=0)
    assert_allclose(model.predict(x), expected, rtol=1e-6)
    assert model.gene_names_out_[:2].tolist() == ["G0", "G1"]
    again = pickle.loads(pickle.dumps(model))
    assert_allclose(again.predict(x), expected, rtol=1e-6)
    bags = [np.random.default_rng(0).normal(size=(30, 32)).astype(np.float32)]
    clusterer = SuperTileClusterer(n_clusters=model._module_params["n_tiles"], random_state=0)
    pipeline = make_pipeline(clusterer, model)
    assert_allclose(pipeline.predict(bags), model.predict(clusterer.fit_transform(bags)))


def test_folders_that_do_not_fit(folder):
    (folder / "short.txt").write_text("A\nB\n")
    with pytest.raises(ValueError, match=r"gene_names: .*short.txt' has 0 columns with \d+"):
        load_sequoia(folder, folder / "short.txt")
    (folder / "genes.txt").write_text("A\n")
    with pytest.raises(ValueError, match="has 2 lists of genes"):
        load_sequoia(folder)
    (folder / "genes.txt").unlink()
    state, _, _ = load_golden("transformer")
    save_file(state, folder / "other.safetensors")
    with pytest.raises(ValueError, match="the checkpoints differ in aggregator"):
        load_sequoia(folder, n_heads=4)
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has no checkpoints"):
        load_sequoia(folder / "empty")
