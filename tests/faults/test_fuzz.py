"""Damaged files of each kind are read right or refused by name; see also `test_hostile_files`."""

# SPDX-License-Identifier: BSD-3-Clause

import faulthandler
import functools
import itertools
import json
import warnings

import h5py
import numpy as np
import openslide
import pandas as pd
import pytest
import tifffile
import timm
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from sklearn_pk.io import read_expression, read_table
from sklearn_pk.prior import read_gmt
from sklearn_pk.prior._gene_sets import load_aliases
from sklearn_pk.regression import load_sequoia
from sklearn_pk.slides import (
    Encoder,
    FoundationFeaturizer,
    SlideTiler,
    check_slides,
    read_features,
)
from sklearn_pk.slides._features import _store

SHAPE = (60, 16)
FEATURES = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
COORDS = np.arange(2 * SHAPE[0]).reshape(-1, 2) * 256
KEY = "0123456789abcdef" * 2
TILES = {"tile_size": 64, "mpp": 0.5, "max_tiles": 4, "random_state": 0}
ENCODER = Encoder("small", "test_vit", 64)
FILE_ERRORS = (FileNotFoundError, PermissionError, ValueError)


def write_slides(folder, rgb):
    for compression in ("jpeg", "lzw", "deflate", "jpeg2000"):
        write_tiff(folder / f"{compression}.tiff", rgb, compression=compression)
    write_tiff(folder / "big.tiff", rgb, compression="jpeg", bigtiff=True)
    write_tiff(folder / "plain.tif", rgb[:130, :140], byteorder=">")
    description = "Aperio Image Library v11.2.1\r\n300x300 [0,0 300x300] (64x64) JPEG|MPP = 0.499"
    write_tiff(folder / "scanner.svs", rgb, compression="jpeg", description=description)


def write_tiff(path, rgb, *, bigtiff=False, byteorder="<", **options):
    options |= {"photometric": "rgb", "tile": (64, 64), "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=bigtiff, byteorder=byteorder) as tiff:
        for level in (0, 1):
            tiff.write(
                np.asarray(Image.fromarray(rgb).reduce(1 + level)),
                subfiletype=level,
                resolution=(2e4, 2e4),
                resolutionunit="CENTIMETER",
                **options,
            )


def write_masks(folder, rgb):
    mask = np.zeros((144, 160), dtype=np.uint8)
    mask[20:100, 30:140] = 255
    Image.fromarray(mask).save(folder / "grey.png")
    Image.fromarray(mask > 0).save(folder / "bit.png")
    Image.fromarray(np.dstack([mask] * 3)).save(folder / "rgb.png")
    Image.fromarray(mask).convert("P").save(folder / "palette.png")
    Image.fromarray(mask.astype(np.uint16)).save(folder / "deep.tif")


def write_annotations(folder, rgb):
    square = [[20, 20], [300, 20], [300, 250], [20, 250], [20, 20]]
    hole = [[60, 60], [90, 60], [90, 90], [60, 60]]
    area = {"type": "Polygon", "coordinates": [square, hole]}
    ignored = {"classification": {"name": "Ignore*"}}
    features = [
        {"type": "Feature", "geometry": area, "properties": {"objectType": "annotation"}},
        {
            "type": "Feature",
            "geometry": {"type": "MultiPolygon", "coordinates": [[square]]},
            "properties": ignored,
        },
    ]
    content = {"type": "FeatureCollection", "features": features}
    (folder / "qupath.geojson").write_text(json.dumps(content))
    (folder / "bare.json").write_text(json.dumps([area]))


def write_hdf5(folder, rgb):
    layouts = {"clam": {}, "gzip": {"chunks": (20, 2), "compression": "gzip"}}
    for name, layout in layouts.items():
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file.create_dataset("features", data=FEATURES, **layout)
            file.create_dataset("coords", data=COORDS, **layout)
            file["coords"].attrs["patch_size_level0"] = 512
    with h5py.File(folder / "stamp.h5", "w") as file:
        file["feats"], file["coords"] = FEATURES.astype(np.float16), COORDS / 2
        file.attrs.update({"extractor": "uni2", "unit": "um", "tile_size_um": 256.0})


def write_tensors(folder, rgb):
    tensor = torch.from_numpy(FEATURES)
    torch.save(tensor, folder / "clam.pt")
    torch.save(tensor.half()[None], folder / "half.pth")
    torch.save(tensor, folder / "legacy.pt", _use_new_zipfile_serialization=False)


def write_stored(folder, rgb):
    """Write a tiled slide with everything that the store keeps of it."""
    write_tiff(folder / "s.tiff", rgb, compression="jpeg")
    [slide] = SlideTiler(tile_size=32, tissue=None).fit_transform([folder / "s.tiff"])
    (folder / "s.tiff").unlink()
    features = np.resize(FEATURES, (len(slide), SHAPE[1]))
    _store.write_features(folder / "s.h5", slide, features, KEY, "uni", "hash")


def write_weights(folder, rgb):
    torch.manual_seed(0)
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    save_file(state, folder / "model.safetensors")
    torch.save(state, folder / "pytorch_model.bin")
    torch.save({"state_dict": state}, folder / "old.pth", _use_new_zipfile_serialization=False)


def write_checkpoints(folder, rgb, dim=8, n_tiles=5, n_genes=3):
    """Write a small transformer with the names of SEQUOIA's tensors."""
    generator, block = torch.Generator().manual_seed(0), "transformer.layers.0"
    shapes = {"pos_emb1D": (n_tiles, dim), "linear_head.1.weight": (n_genes, dim)}
    shapes |= {f"{block}.0.to_qkv.weight": (192, dim), f"{block}.0.to_out.weight": (dim, 64)}
    shapes |= {f"{block}.1.net.{n}.weight": (dim, dim) for n in (1, 3)}
    shapes |= {f"{block}.1.net.{n}.bias": (dim,) for n in (1, 3)}
    for norm in (f"{block}.0.norm", f"{block}.1.net.0", "linear_head.0"):
        shapes |= {f"{norm}.weight": (dim,), f"{norm}.bias": (dim,)}
    shapes["linear_head.1.bias"] = (n_genes,)
    state = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    save_file(state, folder / "model.safetensors")
    torch.save(state, folder / "model.pt")


def write_gene_sets(folder, rgb):
    genes = [f"GENE{number}" for number in range(30)]
    lines = ["\t".join((f"SET_{n}", "http://somewhere", *genes[n : n + 8])) for n in range(20)]
    (folder / "sets.gmt").write_text("\n".join(lines) + "\n")


def write_aliases(folder, rgb):
    pairs = pd.DataFrame({"alias": [f"OLD{n}" for n in range(30)], "symbol": "GENE1"})
    pairs.to_csv(folder / "pairs.csv", index=False)
    hgnc = pairs.rename(columns={"alias": "prev_symbol"}).assign(ensembl_gene_id="ENSG00000000001")
    hgnc.to_csv(folder / "hgnc.tsv", sep="\t", index=False)


def write_tables(folder, rgb):
    values = np.random.default_rng(0).gamma(2.0, size=(12, 6)).round(3)
    names = np.array([f"TCGA-AA-{number:04}" for number in range(12)])
    genes = np.array([f"GENE{number}" for number in range(6)])
    frame = pd.DataFrame(values, names, genes)
    for name in ("wide.csv", "packed.csv.gz", "packed.csv.xz", "packed.csv.zip"):
        frame.to_csv(folder / name)
    frame.to_csv(folder / "wide.tsv", sep="\t")
    frame.to_parquet(folder / "wide.parquet")
    np.savez(folder / "wide.npz", values=values, samples=names, genes=genes)
    packed = {"values": values.astype("f4"), "samples": names, "genes": genes}
    np.savez_compressed(folder / "packed.npz", **packed)


def check_report(report):
    [reason] = report["reason"]
    if not report["ok"][0]:
        raise ValueError(reason)


def read_slide(path, slide, reader):
    tiler = SlideTiler(reader=reader, **TILES)
    check_report(check_slides([path], tiler=tiler))
    [tiled] = tiler.fit_transform([path])
    for tiles in tiled.iter_tiles():
        assert tiles.shape == (64, 64, 3)


def read_mask(path, slide):
    X = pd.DataFrame({"slide": [slide], "tissue": [path]})
    try:
        check_report(check_slides(X, tiler=SlideTiler(**TILES)))
    except ValueError as error:
        # The mask was read, and leaves no tissue.
        if "mask is empty" not in str(error) and "No tile has more" not in str(error):
            raise


def read_bag(path, slide):
    bag = read_features(path, mpp=0.5)
    assert (bag.features.shape, bag.features.dtype) == (bag.shape, np.float32)
    assert bag.coords is None or bag.coords.shape == (len(bag), 2)


def read_weights(path, slide):
    featurizer = FoundationFeaturizer(ENCODER, weights=path, device="cpu")
    featurizer.fit([np.zeros((1, 8, 8, 3), dtype=np.uint8)])


def read_checkpoint(path, slide):
    load_sequoia(path).predict([np.zeros((5, 8), dtype=np.float32)])


def read_tables(path, slide):
    errors = []
    for read in (read_table, read_expression):
        try:
            read(path)
        except (OSError, TypeError, ValueError) as error:
            check_error(error, path)
            errors.append(error)
    if errors:
        raise errors[0]


# By kind of file: what writes good ones, what reads them, the number of damaged ones.
KINDS = {
    "tifffile": (write_slides, functools.partial(read_slide, reader="tifffile"), 50),
    "openslide": (write_slides, functools.partial(read_slide, reader="openslide"), 50),
    "auto": (write_slides, functools.partial(read_slide, reader="auto"), 30),
    "mask": (write_masks, read_mask, 50),
    "annotations": (write_annotations, read_mask, 50),
    "HDF5": (write_hdf5, read_bag, 60),
    "torch": (write_tensors, read_bag, 80),
    "weights": (write_weights, read_weights, 10),
    "checkpoint": (write_checkpoints, read_checkpoint, 60),
    "gene sets": (write_gene_sets, lambda path, slide: read_gmt(path), 60),
    "aliases": (write_aliases, lambda path, slide: load_aliases(path), 60),
    "table": (write_tables, read_tables, 70),
}
TEXT = {"annotations", "gene sets", "aliases"}

# Hypothesis prefers small numbers; these are spread over the file, its start or its end.
_fraction = st.integers(0, (1 << 20) - 1).map(lambda n: n * 0x9E3779B1 % (1 << 20) / (1 << 20))
_position = st.tuples(st.sampled_from(("anywhere", "start", "end")), _fraction)
_length = st.sampled_from((1, 2, 4, 16, 64, 512, 4096))
_cut = st.tuples(st.just("cut"), _position)
_damage = st.one_of(
    _cut,
    st.tuples(st.just("zero"), _position, _length),
    st.tuples(st.just("flip"), _position, st.integers(0, 7)),
    st.tuples(st.just("swap"), _position, _position, _length),
)
_WORDS = ("", "\0", "nan", "-1e999", "9" * 400, "null", "[]", "[" * 5000, '"', ",", "\n", "\ufffd")
_insert = st.tuples(st.just("insert"), _position, st.sampled_from(_WORDS))


def strategy_for(kind):
    """Return a strategy for lists of damages to a file."""
    if kind == "HDF5":
        # Other damage to HDF5 files of other tools can crash or hang the HDF5 library.
        return st.lists(_cut, min_size=1, max_size=1)
    damage = st.one_of(_insert, _damage) if kind in (*TEXT, "table") else _damage
    return st.lists(damage, min_size=1, max_size=4)


def damaged(content, damages):
    """Return the content of a file after some damages."""
    for name, position, *more in damages:
        start = _index(content, position)
        if name == "cut":
            content = content[:start]
        elif name == "insert":
            content = content[:start] + more[0].encode() + content[start:]
        elif not content:
            continue
        elif name == "zero":
            content = _replace(content, start, bytes(more[0]))
        elif name == "flip":
            content = _replace(content, start, bytes([content[start] ^ 1 << more[0]]))
        else:
            other, n_bytes = _index(content, more[0]), more[1]
            first, second = content[start : start + n_bytes], content[other : other + n_bytes]
            content = _replace(_replace(content, start, second), other, first)
    return content


def _index(content, position):
    where, fraction = position
    size = len(content) if where == "anywhere" else min(1024, len(content))
    return int(fraction * size) + (len(content) - size if where == "end" else 0)


def _replace(content, start, part):
    return (content[:start] + part + content[start + len(part) :])[: len(content)]


def fuzz(n_examples):
    return settings(
        max_examples=n_examples,
        derandomize=True,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


def check_error(error, path):
    assert path.stem in str(error), repr(error)
    assert len(str(error)) < 3000


@pytest.fixture(scope="module", autouse=True)
def _no_hang():
    """End the process with a traceback where a library does not return."""
    faulthandler.dump_traceback_later(300, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="module")
def rgb(cmu_slide):
    with openslide.OpenSlide(cmu_slide) as slide:
        return np.array(slide.read_region((900, 1200), 0, (320, 288)).convert("RGB"))


@pytest.fixture(scope="module")
def good_slide(rgb, tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "good.tiff"
    write_tiff(path, rgb, compression="jpeg")
    return str(path)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_or_refused_by_name(kind, rgb, good_slide, tmp_path):
    write, read, n_examples = KINDS[kind]
    write(tmp_path, rgb)
    if kind == "openslide":
        for name in ("jpeg2000.tiff", "plain.tif"):  # not supported by OpenSlide
            (tmp_path / name).unlink()
    seeds = sorted(tmp_path.iterdir())
    for path in seeds:
        read(path, good_slide)
    numbers, n_refused = itertools.count(), []

    @fuzz(n_examples)
    @given(st.sampled_from([(path.name, path.read_bytes()) for path in seeds]), strategy_for(kind))
    def check(seed, damages):
        name, content = seed
        # A name of its own, for files may be known by their name.
        path = tmp_path / f"damaged{next(numbers)}{name[name.index('.') :]}"
        path.write_bytes(damaged(content, damages))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                read(path, good_slide)
            except (*FILE_ERRORS, TypeError) as error:
                check_error(error, path)
                n_refused.append(path)
        for warning in caught:
            assert path.stem in str(warning.message)
        path.unlink()

    check()
    assert len(n_refused) >= n_examples / 6, "the files are hardly damaged"


def test_a_damaged_file_of_the_store_never_gives_a_wrong_array(rgb, tmp_path, monkeypatch):
    monkeypatch.setattr(_store, "_CHUNK_BYTES", 2000)
    write_stored(tmp_path, rgb)
    [good] = tmp_path.iterdir()
    expected, content = read_features(good), good.read_bytes()
    features, coords = expected.features, expected.coords
    assert len(coords) == 90
    path = tmp_path / "damaged.h5"
    refused = []
    monkeypatch.setattr(_store, "_set_aside", lambda *arguments: None)

    def compare(bag):
        """Read everything."""
        np.testing.assert_array_equal(bag.features, features)
        np.testing.assert_array_equal(bag.coords, coords)
        for name in ("slide", "size_level0", "tile_edge_um"):
            assert getattr(bag, name) == getattr(expected, name)

    @fuzz(500)
    @given(strategy_for("store"))
    def check(damages):
        path.write_bytes(damaged(content, damages))
        bag = _store.open_stored(path, KEY, features.shape)
        if bag is not None:
            compare(bag)
            return
        with pytest.raises(ValueError, match=r"damaged\.h5"):
            compare(read_features(path))
        refused.append(damages)

    check()
    assert len(refused) > 250
