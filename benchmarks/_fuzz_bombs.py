"""Files that are small and declare much, or unpack to much."""

# SPDX-License-Identifier: BSD-3-Clause

import bz2
import gzip
import io
import json
import lzma
import struct
import zipfile
import zlib

import h5py
import numpy as np
from PIL import Image

_MIB = 1 << 20


def npy_header(shape, descr):
    """Write the header of an array that is not there."""
    file = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def _png(width, height, depth=8, color=0):
    """Write an image of zeros without ever having it."""
    channels = {0: 1, 2: 3, 3: 1, 6: 4}[color]
    line = bytes(1 + width * channels * depth // 8)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(line) for _ in range(height)) + packer.flush()
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))]
    parts += [(b"IDAT", data), (b"IEND", b"")]
    chunks = b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
        for name, part in parts
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


def _zeros_hdf5(n_rows):
    file = io.BytesIO()
    with h5py.File(file, "w") as target:
        options = {"chunks": (n_rows // 4, 256), "compression": "gzip", "compression_opts": 9}
        target.create_dataset("features", data=np.zeros((n_rows, 256), dtype=np.float32), **options)
    return file.getvalue()


def _wide_tiff(width, height, tile):
    """Declare a slide of any size in a few bytes: all tiles are left out."""
    count = -(-width // tile) * -(-height // tile)
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, 0), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(277, 3, 1, 3), (282, 5, 1, 0), (283, 5, 1, 0), (284, 3, 1, 1), (296, 3, 1, 3)]
    tags += [(322, 4, 1, tile), (323, 4, 1, tile), (324, 4, count, 0), (325, 4, count, 0)]
    end = 8 + 2 + 12 * len(tags) + 4
    places = {258: end, 282: end + 8, 283: end + 8, 324: end + 16, 325: end + 16 + 4 * count}
    data = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    for code, kind, number, value in tags:
        data += struct.pack("<HHII", code, kind, number, places.get(code, value))
    data += struct.pack("<IHHHHII", 0, 8, 8, 8, 0, 20000, 1)
    return data + bytes(8 * count)


def _jpeg(width, height):
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "jpeg")
    data = bytearray(file.getvalue())
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def _zip_bomb(member):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in member.items():
            archive.writestr(name, content)
    return file.getvalue()


def _npz_bomb(shape, descr, n_bytes):
    return _zip_bomb({"values.npy": npy_header(shape, descr) + bytes(n_bytes)})


def _cells_bomb(n_mib):
    return b"x," + b"0," * (n_mib * _MIB // 2)


BOMBS = {
    "slide": {
        "wide.tiff": lambda: _wide_tiff(1 << 30, 1 << 30, 1 << 30),
        "many.tiff": lambda: _wide_tiff(1 << 18, 1 << 18, 1 << 14),
        "sparse.svs": lambda: _wide_tiff(60000, 60000, 1024),
        "strip.tif": lambda: _wide_tiff((1 << 31) - 1, 1, 1 << 30),
    },
    "mask": {
        "large.png": lambda: _png(9500, 9500, depth=1),
        "larger.png": lambda: _png(13000, 13000, depth=1),
        "color.png": lambda: _png(7000, 7000, color=6),
        "deep.png": lambda: _png(7000, 7000, depth=16),
        "huge.png": lambda: _png(100000, 20, depth=1)[:200],
        "flat.png": lambda: _jpeg(65000, 65000),
        "post.png": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
    },
    "drawing": {
        "lists.json": lambda: b"[" + b"[]," * (_MIB // 4) + b"[]]",
        "deep.json": lambda: b"[" * 4 * _MIB,
        "ring.geojson": lambda: json.dumps(
            {"type": "Polygon", "coordinates": [[[0, 0], [1e300, 1e300], [-1e300, 5], [0, 0]]]}
        ).encode(),
        "zigzag.geojson": lambda: json.dumps(
            {
                "type": "Polygon",
                "coordinates": [[*([n, 1e6 * (n % 2)] for n in range(50000)), [0, 0]]],
            }
        ).encode(),
    },
    "hdf5": {
        "zeros.h5": lambda: _zeros_hdf5(20_000),
        "zeros.hdf5": lambda: _zeros_hdf5(200_000),
    },
    "tensor": {"many.pt": lambda: _zip_bomb({f"a/data/{n}": b"" for n in range(20000)})},
    "weights": {
        "zip.pt": lambda: _zip_bomb({"a/data.pkl": bytes(60 * _MIB), "a/version": b"3"}),
        "header.safetensors": lambda: struct.pack("<Q", 20 * _MIB) + b"{" + b" " * 20 * _MIB,
    },
    "sequoia": {
        "zip.pt": lambda: _zip_bomb({"a/data.pkl": b"\x80\x02" + b"]" * 20 * _MIB}),
        "pickle.pt": lambda: b"\x80\x02" + b"(" * _MIB,
    },
    "gene sets": {
        "wide.gmt": lambda: b"SET_A\tx\t" + b"\t".join(b"G%d" % number for number in range(60_000)),
        "line.gmt": lambda: b"A" * 10 * _MIB,
    },
    "table": {
        "a.csv.gz": lambda: gzip.compress(_cells_bomb(50)),
        "b.csv.gz": lambda: gzip.compress(b"x,y\n" + b"1,2\n" * 10 * _MIB),
        "c.csv.xz": lambda: 94 * lzma.compress(bytes(16 * _MIB)),
        "d.csv.bz2": lambda: 150 * bz2.compress(_cells_bomb(2)),
        "e.csv.zip": lambda: _zip_bomb({"e.csv": _cells_bomb(80)}),
        "f.npz": lambda: _npz_bomb((1 << 16, 1 << 12), "<f8", _MIB),
        "g.npz": lambda: _npz_bomb((120, _MIB), "|u1", 120 * _MIB),
        "h.csv": lambda: _cells_bomb(8),
        "i.tsv": lambda: b"\t" * 20 * _MIB,
        "j.csv": lambda: b'x,"' + b"a\n" * 10 * _MIB,
    },
}


def bombs(kind):
    """Return the recipes of files that are small and declare, or unpack to, much."""
    return [
        {"kind": kind, "made": "bomb", "values": {"kind": kind, "name": name}}
        for name in sorted(BOMBS.get(kind, ()))
    ]
