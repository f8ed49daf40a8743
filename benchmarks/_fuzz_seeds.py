"""Good files of each kind, from which bad ones are made, and where in them it hurts most."""

# SPDX-License-Identifier: BSD-3-Clause

import gzip
import io
import json
import pickletools
import re
import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import tifffile
import torch
from PIL import Image
from safetensors.torch import save_file

SHAPE = (60, 16)
KEY = "0123456789abcdef" * 2
# Written by torch of a size that can be mutated thousands of times.
MODEL = ("test_vit", 64)


def features():
    """Draw the features that all files of features hold."""
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def _tissue(width, height):
    from sklearn_pk.datasets import load_cmu_slide
    from sklearn_pk.slides._wsi import _reader

    with _reader.open_slide(load_cmu_slide().path) as slide:
        return slide.read(900, 1200, 0, width, height)


def write_tiff(path, rgb, *, compression="jpeg", n_levels=2, tile=64, ome=False, **options):
    """Write a small pyramid."""
    common = {"photometric": "rgb", "tile": (tile, tile), "compression": compression}
    resolution = {} if ome else {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path, ome=ome, **options) as tiff:
        if ome:
            common["metadata"] = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        for level in range(n_levels):
            size = (rgb.shape[1] >> level, rgb.shape[0] >> level)
            pixels = np.asarray(Image.fromarray(rgb).resize(size))
            sub = {"subifds": n_levels - 1} if ome and not level else {"subfiletype": level > 0}
            tiff.write(pixels, **common, **sub, **(resolution if not level else {}))


def write_svs(path, rgb, compression="jpeg"):
    """Write a pyramid that says what Aperio's scanners say."""
    said = "Aperio Image Library v11.2.1\r\n300x300 [0,0 300x300] (64x64) JPEG/RGB Q=30|"
    description = f"{said}AppMag = 20|MPP = 0.499"
    with tifffile.TiffWriter(path) as tiff:
        for level in (0, 1):
            pixels = np.asarray(Image.fromarray(rgb).reduce(1 + level))
            tiff.write(
                pixels,
                photometric="rgb",
                tile=(64, 64),
                compression=compression,
                description=description,
                metadata=None,
            )


def _write_slides(folder):
    rgb = _tissue(320, 288)
    for kind in ("jpeg", "lzw", "deflate", "jpeg2000"):
        write_tiff(folder / f"{kind}.tiff", rgb, compression=kind)
    write_tiff(folder / "big.tiff", rgb, bigtiff=True, n_levels=3)
    write_tiff(folder / "plain.tif", rgb[:130, :140], compression=None, byteorder=">")
    write_tiff(folder / "pyramid.ome.tiff", rgb, ome=True)
    write_svs(folder / "scanner.svs", rgb)
    write_svs(folder / "wavelets.svs", rgb[:200, :200], "aperio_jp2000_rgb")


def _write_masks(folder):
    mask = np.zeros((144, 160), dtype=np.uint8)
    mask[20:100, 30:140] = 255
    Image.fromarray(mask).save(folder / "grey.png")
    Image.fromarray(mask > 0).save(folder / "bit.png")
    Image.fromarray(np.dstack([mask] * 3)).save(folder / "rgb.png")
    Image.fromarray(mask).convert("P").save(folder / "palette.png")
    Image.fromarray(mask.astype(np.uint16)).save(folder / "deep.tif")


def _write_drawings(folder):
    square = [[[20, 20], [300, 20], [300, 250], [20, 250], [20, 20]]]
    hole = [[60, 60], [90, 60], [90, 90], [60, 60]]
    area = {"type": "Polygon", "coordinates": [*square, hole]}
    cut = {"type": "MultiPolygon", "coordinates": [square]}
    ignored = {"classification": {"name": "Ignore*", "color": [1, 2, 3]}}
    feature = {"type": "Feature", "geometry": area, "properties": {"objectType": "annotation"}}
    left_out = {"type": "Feature", "geometry": cut, "properties": ignored}
    content = {"type": "FeatureCollection", "features": [feature, left_out, feature]}
    (folder / "qupath.geojson").write_text(json.dumps(content))
    (folder / "bare.json").write_text(json.dumps([area]))


def _write_hdf5(folder):
    values, coords = features(), np.arange(2 * SHAPE[0]).reshape(-1, 2) * 256
    layouts = {
        "clam": {},
        "trident": {"chunks": (1, 2), "maxshape": (None, None)},
        "gzip": {"chunks": (20, 2), "compression": "gzip", "shuffle": True},
        "lzf": {"chunks": (20, 2), "compression": "lzf", "fletcher32": True},
    }
    for name, layout in layouts.items():
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file.create_dataset("features", data=values, **layout)
            file.create_dataset("coords", data=coords, **layout)
            file["coords"].attrs["patch_size_level0"] = 512
            if name == "trident":
                file["features"].attrs["savetodir"] = "somewhere/features_uni"
    with h5py.File(folder / "latest.hdf5", "w", libver="latest") as file:
        file.create_dataset("features", data=values, chunks=(7, 3), maxshape=(None, 16))
        file["coords"] = coords
    with h5py.File(folder / "stamp.h5", "w") as file:
        file["feats"] = values.astype(np.float16)
        file["coords"] = coords / 2.0
        said = {"extractor": "uni2", "unit": "um", "tile_size_um": 256.0, "words": ["a", "bc"]}
        file.attrs.update(said)
    with h5py.File(folder / "sequoia.h5", "w") as file:
        file["uni_features"] = values
        file["cluster_features"] = values[:5]


def _write_tensors(folder):
    tensor = torch.from_numpy(features())
    torch.save(tensor, folder / "clam.pt")
    torch.save(tensor.half()[None], folder / "half.pth")
    torch.save(tensor, folder / "legacy.pt", _use_new_zipfile_serialization=False)


def _write_store(folder):
    from sklearn_pk.slides._features import _store

    tiles = np.zeros((SHAPE[0], 2, 2, 3), dtype=np.uint8)
    _store.write_features(folder / "stored.h5", tiles, features(), KEY, "uni", "hash")


def _write_weights(folder):
    import timm

    torch.manual_seed(0)
    state = timm.create_model(MODEL[0], num_classes=0).state_dict()
    save_file(state, folder / "model.safetensors")
    torch.save(state, folder / "pytorch_model.bin")
    torch.save({"state_dict": state}, folder / "old.pth", _use_new_zipfile_serialization=False)


def sequoia_state(dim=8, n_tiles=5, n_genes=3):
    """Draw a small transformer as SEQUOIA names its tensors."""
    generator, block = torch.Generator().manual_seed(0), "transformer.layers.0"
    shapes = {"pos_emb1D": (n_tiles, dim), "linear_head.1.weight": (n_genes, dim)}
    shapes |= {f"{block}.0.to_qkv.weight": (192, dim), f"{block}.0.to_out.weight": (dim, 64)}
    shapes |= {f"{block}.1.net.{n}.weight": (dim, dim) for n in (1, 3)}
    shapes |= {f"{block}.1.net.{n}.bias": (dim,) for n in (1, 3)}
    for norm in (f"{block}.0.norm", f"{block}.1.net.0", "linear_head.0"):
        shapes |= {f"{norm}.weight": (dim,), f"{norm}.bias": (dim,)}
    shapes["linear_head.1.bias"] = (n_genes,)
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def _write_sequoia(folder):
    state = sequoia_state()
    save_file(state, folder / "model.safetensors")
    torch.save(state, folder / "model.pt")
    torch.save(state, folder / "legacy.bin", _use_new_zipfile_serialization=False)


def _write_gene_sets(folder):
    genes = [f"GENE{number}" for number in range(30)]
    lines = [
        "\t".join((f"SET_{genes[n]}", "http://somewhere", *genes[n : n + 8])) for n in range(20)
    ]
    (folder / "sets.gmt").write_text("\n".join(lines) + "\n")


def _write_aliases(folder):
    rows = [(f"OLD{number}", f"GENE{number % 25}") for number in range(30)]
    pd.DataFrame(rows, columns=["alias", "symbol"]).to_csv(folder / "pairs.csv", index=False)
    table = pd.DataFrame({"symbol": [row[1] for row in rows[:20]]})
    table["prev_symbol"] = [f"{row[0]}|P{row[0]}" for row in rows[:20]]
    table["ensembl_gene_id"] = [f"ENSG{number:011}" for number in range(20)]
    table.to_csv(folder / "hgnc.tsv", sep="\t", index=False)


def _write_tables(folder):
    values = np.random.default_rng(0).gamma(2.0, size=(12, 6)).round(3)
    names = [f"TCGA-AA-{number:04}" for number in range(12)]
    frame = pd.DataFrame(values, names, [f"GENE{number}" for number in range(6)])
    frame.to_csv(folder / "wide.csv")
    frame.to_csv(folder / "wide.tsv", sep="\t")
    for packed in ("gz", "bz2", "xz", "zip"):
        frame.to_csv(folder / f"packed.csv.{packed}")
    frame.to_parquet(folder / "wide.parquet")
    rows = np.array(names)
    np.savez(
        folder / "wide.npz", values=values, samples=rows, genes=np.array(frame.columns, dtype=str)
    )
    np.savez_compressed(folder / "packed.npz", values=values.astype("f4"), samples=rows)
    reference = frame.add_prefix("rna_").reset_index(drop=True)
    reference.insert(0, "wsi_file_name", [f"{name}.svs" for name in names])
    reference.insert(1, "patient_id", names)
    reference.to_csv(folder / "reference.csv", index=False)


_WRITERS = {
    "slide": _write_slides,
    "mask": _write_masks,
    "drawing": _write_drawings,
    "hdf5": _write_hdf5,
    "tensor": _write_tensors,
    "store": _write_store,
    "weights": _write_weights,
    "sequoia": _write_sequoia,
    "gene sets": _write_gene_sets,
    "aliases": _write_aliases,
    "table": _write_tables,
}


def write_seeds(folder):
    """
    Write good files of each kind.

    Parameters
    ----------
    folder : path-like
        Where to; each kind gets a folder of its own.

    Returns
    -------
    names : dict of str to list of str
        Kind to the names of its files.
    """
    for kind, write in _WRITERS.items():
        place = Path(folder) / kind
        place.mkdir(parents=True, exist_ok=True)
        write(place)
    return {
        kind: sorted(path.name for path in (Path(folder) / kind).iterdir()) for kind in _WRITERS
    }


def _tiff_fields(data):
    fields = [(2, 2), (4, 4), (8, 8)]
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        pages = [*file.pages]
        pages += [sub for page in file.pages for sub in (page.pages or ())]
        wide = file.is_bigtiff
        for page in pages:
            fields.append((page.offset, 8 if wide else 2))
            for tag in page.tags:
                start = tag.offset
                parts = (
                    ((0, 2), (2, 2), (4, 8), (12, 8)) if wide else ((0, 2), (2, 2), (4, 4), (8, 4))
                )
                fields += [(start + shift, width) for shift, width in parts]
                fields += [(tag.valueoffset + 4 * n, 4) for n in range(min(tag.count, 3))]
            fields += [
                (offset + shift, 2) for offset in page.dataoffsets[:3] for shift in (0, 2, 9)
            ]
    return fields


def _zip_fields(data):
    fields = []
    for magic, widths in {
        b"PK\x03\x04": (2, 2, 2, 2, 2, 4, 4, 4, 2, 2),
        b"PK\x01\x02": (2, 2, 2, 2, 2, 2, 4, 4, 4, 2, 2, 2, 2, 2, 4, 4),
        b"PK\x05\x06": (2, 2, 2, 2, 4, 4, 2),
    }.items():
        for match in re.finditer(re.escape(magic), data):
            position = match.end()
            for width in widths:
                fields.append((position, width))
                position += width
    return fields


def _hdf5_fields(data):
    fields = [(position, 8) for position in range(8, 2048, 8)]
    fields += [(position, 2) for position in range(8, 1024, 2)]
    for match in re.finditer(rb"OHDR|TREE|HEAP|SNOD|FRHP|BTHD|BTLF|GCOL|OCHK|FADB|FAHD|EAHD", data):
        fields += [(match.end() + shift, width) for shift in range(0, 48, 2) for width in (1, 2, 4)]
    return fields


def _pickle_fields(data):
    fields = []
    for match in re.finditer(rb"\x80\x02", data):
        with suppress(ValueError, IndexError):
            fields += [
                (match.start() + position, 1)
                for _, _, position in pickletools.genops(data[match.start() :])
            ]
    return fields


def _png_fields(data):
    fields, position = [], 8
    while position + 8 < len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        fields += [(position + shift, width) for shift, width in ((0, 4), (4, 1), (8, 4), (12, 4))]
        fields += [(position + shift, 1) for shift in range(16, 22)]
        position += length + 12
    return fields


def find_fields(data):
    """
    Find the places of a file that a reader computes with.

    Parameters
    ----------
    data : bytes
        A good file.

    Returns
    -------
    fields : list of (int, int)
        First byte and width of each; those of the first KiB where the format is not known.
    """
    fields = []
    if data[:2] in (b"II", b"MM"):
        fields = _tiff_fields(data)
    elif data[:4] == b"\x89PNG":
        fields = _png_fields(data)
    elif b"\x89HDF" in data[:1024]:
        fields = _hdf5_fields(data)
    elif data[:2] == b"PK":
        fields = _zip_fields(data) + _pickle_fields(data)
    elif data[:2] == b"\x80\x02":
        fields = _pickle_fields(data)
    elif data[:4] == b"PAR1":
        fields = [(position, 1) for position in range(len(data) - 1500, len(data))]
    elif data[8:9] == b"{":
        length = int.from_bytes(data[:8], "little")
        fields = [(match.start() + 8, 1) for match in re.finditer(rb"\d", data[8 : 8 + length])]
    fields += [(position, 1) for position in range(min(64, len(data)))]
    return [(start, width) for start, width in fields if start + width <= len(data)]


def unpack(data):
    """
    Take a packed file apart.

    Parameters
    ----------
    data : bytes
        The file.

    Returns
    -------
    parts : dict of str to bytes or None
        Members of a zip archive, or the content of a gzip file; None for other files.
    """
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    return {"": gzip.decompress(data)} if data[:2] == b"\x1f\x8b" else None


def pack(parts):
    """Put together again what :func:`unpack` took apart; checksums are those of the new parts."""
    if "" in parts:
        return gzip.compress(parts[""])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return file.getvalue()
