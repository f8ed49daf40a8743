"""Files made to run code or to read other files are refused, and no code is run."""

# SPDX-License-Identifier: BSD-3-Clause

import functools
import io
import json
import operator
import os
import pickle
import struct
import subprocess
import tarfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import skops.io
import torch
from PIL import Image
from safetensors.torch import save_file

from sklearn_pk.io import read_table
from sklearn_pk.regression import PriorKnowledgeRegressor, load_sequoia
from sklearn_pk.slides import Encoder, FoundationFeaturizer, SlideTiler, check_slides, read_features
from sklearn_pk.slides._encoders._registry import find_encoder
from sklearn_pk.utils._tensor_files import read_state

FEATURES = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


class Payload:
    """Creates a folder when unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def trace(tmp_path):
    """Path of the folder that a payload creates; it must never exist."""
    path = tmp_path / "was-run"
    yield path
    assert not path.exists(), "code in a file was run"


def _zip(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _tar(path, content):
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


class Global:
    """Pickles `os.mkdir` with the opcode of protocol 4, with the names on the stack."""

    def __init__(self, path):
        self.path = str(path)

    def dump(self):
        text = self.path.encode()
        return b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93\x8c" + bytes([len(text)]) + text + b"\x85R."


def write_torch(kind, path, trace):
    """Write a payload in each of the formats that torch has had."""
    payload = Payload(trace)
    dumped = pickle.dumps(payload, protocol=2)
    if kind in ("zip", "legacy"):
        value = {"weight": torch.ones(2), "x": payload}
        torch.save(value, path, _use_new_zipfile_serialization=kind == "zip")
    elif kind == "plain":
        path.write_bytes(dumped)
    elif kind == "old protocol":
        path.write_bytes(pickle.dumps(payload, protocol=0))
    elif kind == "stack global":
        path.write_bytes(Global(trace).dump())
    elif kind == "tar":
        _tar(path, dumped)
    elif kind == "packed":
        _zip(path, {"a/data.pkl": dumped, "a/version": b"3\n"}, zipfile.ZIP_DEFLATED)
    elif kind == "bare zip":
        _zip(path, {"a/data.pkl": dumped, "a/version": b"3\n", "a/byteorder": b"little"})
    elif kind == "script":
        module = torch.jit.script(torch.nn.Linear(2, 2))
        torch.jit.save(module, path)


FORMS = ("zip", "legacy", "plain", "old protocol", "stack global", "tar", "packed", "bare zip")
READERS = {
    "features": read_features,
    "weights": read_state,
    "checkpoint": load_sequoia,
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("kind", [*FORMS, "script"])
@pytest.mark.parametrize("reader", READERS)
def test_payloads_for_torch(kind, reader, tmp_path, trace):
    path = tmp_path / "evil.pt"
    write_torch(kind, path, trace)
    with pytest.raises(ValueError, match=r"evil\.pt"):
        READERS[reader](path)


@pytest.mark.parametrize("kind", ["plain", "old protocol", "stack global"])
def test_the_payloads_do_run_code(kind, tmp_path):
    path = tmp_path / "evil.pt"
    write_torch(kind, path, tmp_path / "done")
    pickle.loads(path.read_bytes())
    assert (tmp_path / "done").is_dir()


def test_payload_as_weights_of_the_featurizer(tmp_path, trace):
    write_torch("zip", tmp_path / "evil.pt", trace)
    encoder = Encoder("small", "test_vit", 64)
    featurizer = FoundationFeaturizer(encoder, weights=tmp_path / "evil.pt", device="cpu")
    with pytest.raises(ValueError, match=r"evil\.pt"):
        featurizer.fit([np.zeros((1, 8, 8, 3), dtype=np.uint8)])


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 90 << 20) + b"{" + b" " * (1 << 20),
        struct.pack("<Q", 2) + b"{}" + b"\0" * 8,
        struct.pack("<Q", 8) + b'{"a": 1}',
        struct.pack("<Q", 100_000) + b'{"a":' * 20_000,
    ],
    ids=["past the end", "cut off", "left over", "no tensor", "deep"],
)
def test_headers_of_safetensors(content, tmp_path):
    path = tmp_path / "evil.safetensors"
    path.write_bytes(content)
    for read in (read_state, load_sequoia):
        with pytest.raises(ValueError, match=r"evil\.safetensors"):
            read(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 1 << 60]},
        {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]},
        {"dtype": "OBJECT", "shape": [4], "data_offsets": [0, 16]},
    ],
    ids=["shape", "end", "backwards", "dtype"],
)
def test_tensors_of_safetensors_that_are_not_there(entry, tmp_path):
    header = json.dumps({"pos_emb1D": entry}).encode()
    path = tmp_path / "evil.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with pytest.raises(ValueError, match=r"evil\.safetensors"):
        load_sequoia(path)


def test_tensors_of_safetensors_that_overlap(tmp_path):
    save_file({"a": torch.ones(4), "b": torch.ones(4)}, tmp_path / "good.safetensors")
    content = (tmp_path / "good.safetensors").read_bytes()
    path = tmp_path / "evil.safetensors"
    path.write_bytes(content.replace(b"[16,32]", b"[0,16] "))
    with pytest.raises(ValueError, match=r"evil\.safetensors"):
        read_state(path)


@pytest.mark.parametrize(
    "arguments",
    [
        {"checkpoint_path": "evil.pt"},
        {"pretrained": True},
        {"cache_dir": "/"},
        ["checkpoint_path"],
    ],
)
def test_configuration_that_names_another_file(arguments, tmp_path, trace):
    torch.save({"x": Payload(trace)}, tmp_path / "evil.pt")
    save_file({"weight": torch.ones(1)}, tmp_path / "model.safetensors")
    if isinstance(arguments, dict) and "checkpoint_path" in arguments:
        arguments = {"checkpoint_path": str(tmp_path / "evil.pt")}
    config = {"architecture": "resnet10t", "model_args": arguments, "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json does not describe a model .*model_args"):
        find_encoder("hf-hub:some-one/new", tmp_path)


def _write_secret(folder):
    """Write a file that must not be read, with values that can be recognized."""
    secret = folder / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["features"] = np.full((6, 4), 4321, dtype=np.float32)
    (folder / "secret.bin").write_bytes(np.full(24, 4321, dtype=np.float32).tobytes())
    return secret


def write_link(kind, path, secret, name):
    """Write a file of features with values that are elsewhere."""
    with h5py.File(path, "w") as file:
        other = "coords" if name == "features" else "features"
        file[other] = FEATURES if other == "features" else np.zeros((6, 2), dtype=np.int64)
        width = 4 if name == "features" else 2
        if kind == "external link":
            file[name] = h5py.ExternalLink(str(secret), "features")
        elif kind == "link on the way":
            file["group"] = h5py.ExternalLink(str(secret), "/")
            file[name] = h5py.SoftLink("/group/features")
        elif kind == "raw":
            raw = [(str(secret.with_suffix(".bin")), 0, 24 * width)]
            file.create_dataset(name, (6, width), "f4", external=raw)
        elif kind == "virtual":
            layout = h5py.VirtualLayout((6, width), "f4")
            layout[:] = h5py.VirtualSource(str(secret), "features", (6, 4))[:, :width]
            file.create_virtual_dataset(name, layout)
        else:
            file[name] = h5py.SoftLink(f"/{name if kind == 'circle' else other}")


LINKS = {
    "external link": "only what is in the file itself is read",
    "link on the way": "only what is in the file itself is read",
    "raw": "in another file, which is not read",
    "virtual": "in another file, which is not read",
    "soft link": "only what is in the file itself is read",
    "circle": "only what is in the file itself is read",
}


@pytest.mark.parametrize("name", ["features", "coords"])
@pytest.mark.parametrize("kind", LINKS)
def test_values_elsewhere(kind, name, tmp_path):
    path = tmp_path / "evil.h5"
    write_link(kind, path, _write_secret(tmp_path), name)
    if kind not in ("soft link", "circle"):
        with h5py.File(path) as file:
            assert (file[name][()] == 4321).all(), "the values can be reached"
    with pytest.raises(ValueError, match=rf"evil\.h5.*its '{name}'.*{LINKS[kind]}"):
        read_features(path)
    (tmp_path / "secret.h5").unlink()
    # In a folder, it is listed and the good file is read.
    with h5py.File(tmp_path / "good.h5", "w") as file:
        file["features"] = FEATURES
    with pytest.warns(UserWarning, match=r"1 of 2 files .*evil\.h5"):
        bags = read_features(tmp_path)
    assert bags.names == ["good"]


def test_a_link_made_after_the_file_was_opened(tmp_path):
    path = tmp_path / "evil.h5"
    with h5py.File(path, "w") as file:
        file["features"] = FEATURES
        file.attrs.update({"key": "k", "features_crc32": 1})
    bag = read_features(path)
    write_link("external link", path, _write_secret(tmp_path), "features")
    with pytest.raises(ValueError, match=r"evil\.h5.*its 'features' is a link"):
        bag.features  # noqa: B018


def test_data_sets_in_groups(tmp_path):
    with h5py.File(tmp_path / "good.h5", "w") as file:
        file["deep/inside"] = FEATURES
    for name in ("deep/inside", "/deep/inside"):
        np.testing.assert_array_equal(read_features(tmp_path / "good.h5", features=name), FEATURES)


@pytest.mark.parametrize("place", ["opaque", "ragged", "text", "attribute", "of coords"])
def test_pickles_in_hdf5(place, tmp_path, trace):
    dumped = pickle.dumps(Payload(trace))
    path = tmp_path / "evil.h5"
    bytes_of = np.frombuffer(dumped, dtype=np.uint8)
    with h5py.File(path, "w") as file:
        if place == "opaque":
            file["features"] = np.array([[np.void(dumped)] * 2])
        elif place == "ragged":
            ragged = file.create_dataset("features", (1, 2), h5py.vlen_dtype(np.uint8))
            ragged[0, 0] = bytes_of
        elif place == "text":
            kind = h5py.string_dtype("ascii", len(dumped))
            file.create_dataset("features", data=np.array([[dumped]]), dtype=kind)
        else:
            file["features"] = FEATURES
            file["coords"] = np.zeros((6, 2), dtype=np.int64)
            owner = file if place == "attribute" else file["coords"]
            for name in ("encoder", "key", "patch_size_level0", "tile_edge_um"):
                owner.attrs[name] = np.void(dumped)
    if place in ("attribute", "of coords"):
        np.testing.assert_array_equal(read_features(path), FEATURES)
        return
    with pytest.raises(ValueError, match=r"evil\.h5"):
        read_features(path).features  # noqa: B018


def test_pickles_in_tables(tmp_path, trace):
    path = tmp_path / "evil.npz"
    _zip(path, {"values.npy": pickle.dumps(Payload(trace))})
    with pytest.raises(ValueError, match=r"evil\.npz"):
        read_table(path)
    path.write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(ValueError, match=r"evil\.npz"):
        read_table(path)
    file = io.BytesIO()
    np.save(file, np.array([Payload(trace)], dtype=object), allow_pickle=True)
    _zip(path, {"values.npy": file.getvalue()})
    with pytest.raises(ValueError, match=r"evil\.npz.*'values' holds Python objects"):
        read_table(path)


def _members(dumped):
    with zipfile.ZipFile(io.BytesIO(dumped)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def dumped_model():
    """The content of a good model file."""
    model = PriorKnowledgeRegressor(max_epochs=1, random_state=0)
    rng = np.random.default_rng(0)
    model.fit(rng.normal(size=(10, 4)).astype(np.float32), rng.normal(size=(10, 3)))
    return skops.io.dumps(model)


HOSTILE = {
    "posix.mkdir": lambda trace: os.mkdir,
    "builtins.eval": lambda trace: eval,
    "subprocess.Popen": lambda trace: subprocess.Popen,
    "functools.partial": lambda trace: functools.partial(os.mkdir, str(trace)),
    "operator.methodcaller": lambda trace: operator.methodcaller("mkdir", str(trace)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_model_files_that_name_other_types(name, dumped_model, tmp_path, trace):
    path = tmp_path / "evil.skops"
    members = _members(dumped_model)
    schema = json.loads(members["schema.json"])
    hostile = _members(skops.io.dumps(HOSTILE[name](trace)))["schema.json"]
    schema["content"]["content"]["seed_"] = json.loads(hostile)
    _zip(path, members | {"schema.json": json.dumps(schema).encode()})
    found = skops.io.get_untrusted_types(file=path)
    assert any(name.partition(".")[2] in each for each in found), found
    ours = f"{PriorKnowledgeRegressor.__module__}.PriorKnowledgeRegressor"
    with pytest.raises(skops.io.exceptions.UntrustedTypesFoundException):
        skops.io.load(path, trusted=[ours])


def test_masks_that_start_a_program(tmp_path, cmu_slide):
    # Pillow would pass PostScript to Ghostscript, whatever the name of the file.
    mask = tmp_path / "evil.png"
    Image.new("RGB", (8, 8)).save(mask, "EPS")
    with Image.open(mask) as image:
        assert image.format == "EPS"
    tiler = SlideTiler(tissue=mask)
    [reason] = check_slides([cmu_slide], tiler=tiler)["reason"]
    assert "evil.png" in reason
    assert "cannot identify image file" in reason


@pytest.mark.parametrize("name", ["pipe.h5", "pipe.pt", "pipe.svs", "pipe.png"])
def test_pipes_are_not_waited_for(name, tmp_path, cmu_slide):
    path = tmp_path / name
    os.mkfifo(path)
    if Path(name).suffix in (".h5", ".pt"):
        with pytest.raises(ValueError, match=rf"{name}.*expected a file of features"):
            read_features(path)
        return
    X, tiler = [path], SlideTiler()
    if name == "pipe.png":
        X, tiler = [cmu_slide], SlideTiler(tissue=str(path))
    [reason] = check_slides(X, tiler=tiler)["reason"]
    assert name in reason
