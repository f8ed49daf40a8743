"""Bad files that no change of a good one gives: wrong content that is written well, and bombs."""

# SPDX-License-Identifier: BSD-3-Clause

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import h5py
import numpy as np
import tifffile
import torch
from _fuzz_bombs import BOMBS, npy_header
from hypothesis import strategies as st
from safetensors.torch import save_file

_MIB = 1 << 20
_SIZES = (0, 1, 2, 5, 60, 1 << 20, 1 << 31, 1 << 40)
_FLOATS = ("<f4", "<f2", ">f8", "<i4", "|u1", "<c8", "|b1")


def _declared(shape):
    """Keep the first huge number of a shape only, for HDF5 takes no more than 64 bits of bytes."""
    huge = [place for place, number in enumerate(shape) if number > 1000]
    return tuple(2 if place in huge[1:] else number for place, number in enumerate(shape))


def _write_hdf5(path, values):
    """Write tile features of any shape and type, and what else may lie beside them."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        shape = _declared(values["shape"])
        big = np.prod(shape, dtype=float) > 1e5
        full = bool(shape) and all(shape)
        options = {"chunks": True, "compression": values["compression"]} if full else {}
        if big:
            dataset = file.create_dataset(values["name"], shape, values["dtype"], **options)
        else:
            data = rng.normal(size=shape)
            data.ravel()[: values["bad"]] = values["value"]
            with np.errstate(all="ignore"):
                data = data.astype(values["dtype"])
            dataset = file.create_dataset(values["name"], data=data, **options)
        dataset.attrs["savetodir"] = values["text"]
        rows = shape[0] if shape and shape[0] < 1000 else 3
        coords = rng.integers(0, 9, size=(rows + values["extra"], 2)).astype(values["coords"])
        if coords.dtype.kind == "f":
            coords.ravel()[: values["bad"]] = values["value"]
        file["coords"] = coords
        file["coords"].attrs["patch_size_level0"] = values["attribute"]
        file.attrs["encoder"] = values["text"]
        file.attrs["tile_edge_um"] = values["attribute"]
        if values["own"]:
            file.attrs.update(key="0" * 32, complete=True, checksum="1" * 32, slide=values["text"])


def _link_hdf5(path, values):
    """Write a file whose features are somewhere else, or nothing that HDF5 can follow."""
    secret = Path(path).with_name("another.bin")
    secret.write_bytes(np.ones(100, dtype=np.float32).tobytes())
    other = Path(path).with_name("another.hdf5.bin")
    with h5py.File(other, "w") as file:
        file["features"] = np.ones((10, 10), dtype=np.float32)
    kind, name = values["link"], values["name"]
    with h5py.File(path, "w") as file:
        if kind == "external link":
            file[name] = h5py.ExternalLink(str(other), "features")
        elif kind == "raw":
            file.create_dataset(name, (10, 10), "f4", external=[(str(secret), 0, 400)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((10, 10), "f4")
            layout[:] = h5py.VirtualSource(str(other), "features", (10, 10))
            file.create_virtual_dataset(name, layout)
        elif kind == "circle":
            file[name] = h5py.SoftLink(f"/{name}")
        elif kind == "dangling":
            file[name] = h5py.SoftLink("/nowhere")
        elif kind == "objects":
            file.create_dataset(name, data=["a", "b"], dtype=h5py.string_dtype())
        elif kind == "opaque":
            file[name] = np.frombuffer(pickle.dumps({"a": 1})[:8], dtype="V8")
        elif kind == "type":
            file[name] = np.dtype("f4")
        else:
            file[name] = h5py.Empty("f4")


_hdf5 = st.fixed_dictionaries(
    {
        "name": st.sampled_from(("features", "feats", "uni_features", "images", "é", "a/b")),
        "shape": st.lists(st.sampled_from(_SIZES), max_size=4),
        "dtype": st.sampled_from(_FLOATS),
        "compression": st.sampled_from((None, "gzip", "lzf")),
        "bad": st.integers(0, 3),
        "value": st.sampled_from((float("nan"), float("inf"), 1e300, -1.0)),
        "extra": st.sampled_from((0, 0, 1)),
        "coords": st.sampled_from(("i8", "f4", "u1", "f8")),
        "attribute": st.sampled_from((0, -1, 1e300, float("nan"), "x", [1, 2], "")),
        "text": st.sampled_from(("uni", "", "\n", "é" * 500)),
        "own": st.booleans(),
    }
).map(lambda values: values | {"value": repr(values["value"])})
_LINKS = ("external link", "raw", "virtual", "circle", "dangling", "objects", "opaque", "type", "")
_links = st.fixed_dictionaries(
    {"link": st.sampled_from(_LINKS), "name": st.sampled_from(("features", "coords", "feats"))}
)


class Payload:
    """Makes a folder where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def _full(shape, values):
    dtype = getattr(torch, values["dtype"])
    value = float(values["value"]) if dtype.is_floating_point else 1
    return torch.full(shape, value, dtype=dtype)


def _tensor(values, path):
    tensor = _full(values["shape"], values)
    kinds = {
        "plain": lambda: tensor,
        "dict": lambda: {"features": tensor},
        "list": lambda: [tensor],
        "expanded": lambda: torch.zeros(1).expand(1 << 30, 1 << 10),
        "sparse": lambda: tensor.to_sparse(),
        "nested": lambda: torch.nested.nested_tensor([torch.ones(2, 3)]),
        "meta": lambda: torch.empty(1 << 20, 1 << 20, device="meta"),
        "payload": lambda: {"features": tensor, "x": Payload(f"{path}.was-run")},
        "text": lambda: "features",
        "none": lambda: None,
        "numpy": lambda: tensor.float().numpy(),
    }
    return kinds[values["content"]]()


def _write_tensor(path, values):
    torch.save(_tensor(values, path), path, _use_new_zipfile_serialization=values["modern"])


_CONTENTS = ("plain", "dict", "list", "expanded", "sparse", "meta", "payload", "text", "none")
_tensors = st.fixed_dictionaries(
    {
        "content": st.sampled_from((*["plain"] * 5, *_CONTENTS, "numpy", "nested")),
        "shape": st.lists(st.sampled_from((0, 1, 2, 60)), max_size=4),
        "dtype": st.sampled_from(("float32", "float16", "bfloat16", "int64", "complex64", "bool")),
        "value": st.sampled_from(("nan", "inf", "1.0")),
        "modern": st.booleans(),
    }
)


def _write_state(path, values):
    names = values["names"]
    shapes = zip(names, values["shapes"], strict=False)
    save_file({name: _full(shape, values) for name, shape in shapes}, path)


_NAMES = ("pos_emb1D", "linear_head.1.weight", "transformer.layers.0.0.to_qkv.weight", "", "é.x")
_NAMES += (
    "transformer.layers.99999999999.0.norm.weight",
    "transformer.layers.0.0.mixers.5.f.weight",
)
_states = st.fixed_dictionaries(
    {
        "names": st.lists(st.sampled_from(_NAMES), unique=True, min_size=1),
        "shapes": st.lists(
            st.lists(st.sampled_from((0, 1, 3, 64, 192)), max_size=3), min_size=6, max_size=6
        ),
        "dtype": st.sampled_from(("float32", "float16", "int64", "bool")),
        "value": st.sampled_from(("nan", "inf", "1.0")),
    }
)


def _write_header(path, values):
    """Write a safetensors file whose header says something wrong."""
    shape = values["shape"]
    entry = {"dtype": values["dtype"], "shape": shape, "data_offsets": values["offsets"]}
    header = json.dumps({"pos_emb1D": entry, "__metadata__": values["more"]}).encode()
    length = values["length"] if values["length"] is not None else len(header)
    Path(path).write_bytes(struct.pack("<Q", length) + header + bytes(values["bytes"]))


_headers = st.fixed_dictionaries(
    {
        "shape": st.lists(st.sampled_from((0, 1, 5, 1 << 31, 1 << 62)), max_size=3),
        "dtype": st.sampled_from(("F32", "BF16", "F8_E4M3", "OBJECT", "", "I64")),
        "offsets": st.lists(st.sampled_from((0, 4, 20, 1 << 62)), min_size=1, max_size=3),
        "more": st.sampled_from(({}, {"a": "b"}, {"a": 1}, "x", None)),
        "length": st.sampled_from((None, None, None, 0, 1, 1 << 20, 1 << 62, (1 << 64) - 1)),
        "bytes": st.sampled_from((0, 4, 20)),
    }
)

_point = st.lists(st.one_of(st.floats(), st.integers(-10, 10**30)), max_size=4)
_geometry = st.fixed_dictionaries(
    {
        "type": st.sampled_from(("Polygon", "MultiPolygon", "Point", "Feature", "x", None, 3)),
        "coordinates": st.one_of(
            st.none(),
            st.lists(_point, max_size=5),
            st.lists(st.lists(_point, max_size=5), max_size=2),
            st.lists(st.lists(st.lists(_point, max_size=5), max_size=2), max_size=2),
            st.text(max_size=3),
        ),
    }
)
_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), _geometry),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.fixed_dictionaries(
            {
                "type": st.sampled_from(("Feature", "FeatureCollection", "GeometryCollection")),
                "geometry": inner,
                "features": inner,
                "properties": st.one_of(inner, st.just({"classification": {"names": []}})),
            }
        ),
    ),
    max_leaves=6,
)
_drawings = _json.map(json.dumps)


def _write_text(path, values):
    Path(path).write_text(values, encoding="utf-8", errors="surrogatepass")


_cells = st.one_of(
    st.sampled_from(("", "1", "0.5", "nan", "inf", "x", '"', "1e999", "TCGA-AA-0001", "True")),
    st.text(max_size=4),
)


def _rows(separator):
    lines = st.lists(st.lists(_cells, max_size=5).map(separator.join), max_size=6)
    return lines.map("\n".join)


def _write_tiff(path, values):
    """Write a TIFF that no slide is, or one that says more than it holds."""
    shape = tuple(values["shape"])
    data = np.zeros(shape, dtype=values["dtype"])
    data[:, : shape[1] // 2] = np.nan if data.dtype.kind == "f" else 1
    colored = shape[-1] == 3 and min(shape[:2]) >= 16 and data.dtype == np.uint8
    tifffile.imwrite(
        path,
        data,
        photometric="rgb" if shape[-1] >= 3 else "minisblack",
        tile=(values["tile"],) * 2 if values["tile"] and min(shape[:2]) >= 16 else None,
        compression=values["compression"] if colored else None,
        description=values["text"],
        metadata=None,
        resolution=(values["resolution"],) * 2,
        resolutionunit=values["unit"],
    )
    with tifffile.TiffFile(path) as file:
        places = {tag.code: (tag.valueoffset, int(tag.dtype)) for tag in file.pages[0].tags}
    content = bytearray(Path(path).read_bytes())
    for code, number in values["tags"]:
        if code in places:
            start, kind = places[code]
            width = 2 if kind == 3 else 4
            content[start : start + width] = (number % (1 << 8 * width)).to_bytes(width, "little")
    Path(path).write_bytes(content)


_OME = '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image>'
_TEXTS = (
    *("", "Aperio Image Library v1", "Aperio\r\n1x1|MPP = x|AppMag = inf", "Aperio|MPP = 1e-9|"),
    *(_OME, _OME + '<Pixels PhysicalSizeX="a"/></Image></OME>', "ImageJ=1\nimages=99999999"),
    *("SCANIMAGE", "<scn></scn>", '<!DOCTYPE a [<!ENTITY b "c">]><OME>&b;</OME>', '{"shape": [9]}'),
)
_CODES = (256, 257, 258, 259, 262, 277, 282, 284, 296, 317, 322, 323, 324, 325, 339, 347, 530)
_BIG = (0, 1, 3, 16, 4096, 65535, 1 << 20, 1 << 30, (1 << 31) - 1, (1 << 32) - 1, 34712)
_tiffs = st.fixed_dictionaries(
    {
        "shape": st.tuples(
            st.sampled_from((1, 16, 300)), st.sampled_from((1, 16, 300)), st.sampled_from((1, 3, 4))
        ),
        "dtype": st.sampled_from(("uint8", "uint8", "uint8", "uint16", "float32", "bool")),
        "tile": st.sampled_from((0, 16, 64, 256)),
        "compression": st.sampled_from((None, "jpeg", "lzw", "jpeg2000", "zstd", "webp", "png")),
        "text": st.sampled_from(_TEXTS),
        "resolution": st.sampled_from((0, 1, 2e4, 1e9, 20)),
        "unit": st.sampled_from((1, 2, 3)),
        "tags": st.lists(st.tuples(st.sampled_from(_CODES), st.sampled_from(_BIG)), max_size=3),
    }
)


def _write_npz(path, values):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        header = npy_header(values["shape"], values["descr"])
        archive.writestr("values.npy", header + bytes(values["bytes"]))
        file = io.BytesIO()
        np.save(file, np.array(["a", "b"]))
        archive.writestr("samples.npy", file.getvalue())


_npzs = st.fixed_dictionaries(
    {
        "shape": st.lists(st.sampled_from((0, 1, 2, 5, 1 << 20, 1 << 33, 1 << 62)), max_size=3),
        "descr": st.sampled_from(
            ("<f8", "<f4", "|O", "<U5", "<U900000000", "|V8", "<M8[s]", "<c8")
        ),
        "bytes": st.sampled_from((0, 8, 32, 1000)),
    }
)


_MAKERS = {
    "hdf5": (_write_hdf5, ".h5"),
    "link": (_link_hdf5, ".h5"),
    "tensor": (_write_tensor, ".pt"),
    "state": (_write_state, ".safetensors"),
    "header": (_write_header, ".safetensors"),
    "drawing": (_write_text, ".geojson"),
    "csv": (_write_text, ".csv"),
    "tsv": (_write_text, ".tsv"),
    "gmt": (_write_text, ".gmt"),
    "tiff": (_write_tiff, ".tiff"),
    "npz": (_write_npz, ".npz"),
}
MADE = {
    "slide": {"tiff": _tiffs},
    "mask": {"tiff": _tiffs},
    "drawing": {"drawing": _drawings},
    "hdf5": {"hdf5": _hdf5, "link": _links},
    "tensor": {"tensor": _tensors},
    "weights": {"state": _states, "header": _headers},
    "sequoia": {"state": _states, "header": _headers},
    "gene sets": {"gmt": _rows("\t")},
    "aliases": {"csv": _rows(","), "tsv": _rows("\t")},
    "table": {"csv": _rows(","), "tsv": _rows("\t"), "npz": _npzs},
}


def make_file(maker, values, folder, stem):
    """
    Write a file that is made anew.

    Parameters
    ----------
    maker : str
        What writes it.
    values : object
        What it is told.
    folder : path-like
        Where to write.
    stem : str
        Name of the file without its ending.

    Returns
    -------
    path : pathlib.Path
        The file.
    """
    if maker == "bomb":
        path = Path(folder) / f"{stem}{values['name'][values['name'].index('.') :]}"
        path.write_bytes(BOMBS[values["kind"]][values["name"]]())
        return path
    write, ending = _MAKERS[maker]
    path = Path(folder) / f"{stem}{ending}"
    write(path, values)
    return path
