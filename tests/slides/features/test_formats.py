"""Files of features in the layout of each tool, and other files."""

# SPDX-License-Identifier: BSD-3-Clause

import os
import pickle
import zipfile
from functools import partial

import h5py
import numpy as np
import pandas as pd
import pytest
import shapely
import torch
import zarr
from safetensors.torch import save_file

from sklearn_pk.slides import FeatureBag, read_features

FEATURES = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
COORDS = np.arange(10, dtype=np.int32).reshape(5, 2) * 100


def write_h5(path, attrs=None, coords_attrs=None, **datasets):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, value in datasets.items():
            file[name] = value
        file.attrs.update(attrs or {})
        if coords_attrs:
            file["coords"].attrs.update(coords_attrs)
    return path


def write_trident(path, features=FEATURES, coords=COORDS):
    """Write one chunk per tile and the attributes of TRIDENT."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, value in (("features", features), ("coords", coords.astype(np.int64))):
            size = (1, *value.shape[1:])
            file.create_dataset(name, data=value, chunks=size, maxshape=(None, *value.shape[1:]))
        file["features"].attrs.update({"name": path.stem, "savetodir": str(path.parent)})
        file["coords"].attrs.update(
            {
                "patch_size": 256,
                "patch_size_level0": 512.0,
                "level0_magnification": 40,
                "target_magnification": 20,
                "overlap": 0,
                "name": path.stem,
                "savetodir": "None",
                "level0_width": 4000,
                "level0_height": 3000,
            }
        )
    return path


def write_stamp(path, features=FEATURES, **attrs):
    """Write features in half precision and corners in um."""
    own = {"stamp_version": "2.3.0", "extractor": "uni2", "unit": "um", "tile_size_um": 256.0}
    return write_h5(
        path,
        attrs=own | {"tile_size_px": 224, "feat_type": "tile"} | attrs,
        feats=features.astype(np.float16),
        coords=COORDS[: len(features)].astype(np.float32) / 2,
    )


def write_torch(path, value, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path, **kwargs)
    return path


def test_trident(tmp_path):
    bag = read_features(write_trident(tmp_path / "features_uni_v1" / "TCGA-X.8F-1.h5"))
    np.testing.assert_array_equal(bag.features, FEATURES)
    np.testing.assert_array_equal(bag.coords, COORDS)
    assert bag.coords.dtype == np.int64
    assert (bag.slide, bag.name, bag.size_level0) == ("TCGA-X.8F-1", "TCGA-X.8F-1", 512)
    read_features(tmp_path / "features_uni_v1", encoder="uni_v1")
    with pytest.raises(ValueError, match=r"no features of the encoder 'gpfm'; found: uni_v1"):
        read_features(tmp_path / "features_uni_v1" / "TCGA-X.8F-1.h5", encoder="gpfm")


def test_trident_of_a_slide_without_tissue(tmp_path):
    bag = read_features(write_trident(tmp_path / "s.h5", FEATURES[:0], COORDS[:0]))
    assert (bag.shape, bag.features.shape, bag.coords.shape) == ((0, 3), (0, 3), (0, 2))


def test_trident_with_an_axis_of_slides(tmp_path):
    path = write_h5(tmp_path / "s.h5", features=FEATURES[None], coords=COORDS[None])
    bag = read_features(path)
    assert bag.shape == (5, 3)
    np.testing.assert_array_equal(bag.features, FEATURES)
    np.testing.assert_array_equal(bag.coords, COORDS)


@pytest.mark.parametrize("value", ["None", np.nan])
def test_attributes_that_are_not_numbers(tmp_path, value):
    attrs = {"patch_size_level0": value}
    bag = read_features(
        write_h5(tmp_path / "s.h5", features=FEATURES, coords=COORDS, coords_attrs=attrs)
    )
    assert bag.size_level0 is None


def test_clam(tmp_path):
    bag = read_features(write_h5(tmp_path / "s.h5", features=FEATURES, coords=COORDS))
    np.testing.assert_array_equal(bag, FEATURES)
    np.testing.assert_array_equal(bag.coords, COORDS)
    assert (bag.slide, bag.size_level0, bag.tile_edge_um) == ("s", None, None)


@pytest.mark.parametrize("modern", [True, False])
def test_clam_torch_file(tmp_path, modern):
    path = write_torch(
        tmp_path / "s.pt", torch.from_numpy(FEATURES), _use_new_zipfile_serialization=modern
    )
    bag = read_features(path)
    np.testing.assert_array_equal(bag, FEATURES)
    assert (bag.shape, bag.coords, bag.name) == ((5, 3), None, "s")


def test_tensors_of_other_kinds(tmp_path):
    tensor = torch.from_numpy(FEATURES)
    for name, value in {
        "half": tensor.half(),
        "bfloat16": tensor.bfloat16(),
        "double": tensor.double(),
        "parameter": torch.nn.Parameter(tensor),
        "axis": tensor[None],
        "transposed": tensor.T.contiguous().T,
    }.items():
        bag = read_features(write_torch(tmp_path / f"{name}.pt", value))
        assert bag.features.dtype == np.float32
        np.testing.assert_allclose(bag, FEATURES, rtol=1e-2)


def test_features_are_a_copy_of_the_tensor(tmp_path):
    path = write_torch(tmp_path / "s.pt", torch.from_numpy(FEATURES))
    features = read_features(path).features
    assert features.flags.owndata
    features[:] = 0
    np.testing.assert_array_equal(read_features(path), FEATURES)


def test_stamp_with_the_resolution_of_the_slide(tmp_path):
    path = write_stamp(tmp_path / "s.h5")
    for mpp in (0.5, {"s": 0.5}, pd.Series({"s": 0.5, "t": 0.25})):
        bag = read_features(path, mpp=mpp)
        np.testing.assert_array_equal(bag, FEATURES.astype(np.float16))
        assert bag.features.dtype == np.float32
        np.testing.assert_array_equal(bag.coords, COORDS)
        assert (bag.size_level0, bag.tile_edge_um) == (512, 256.0)


@pytest.mark.parametrize("mpp", [None, {"another": 0.5}, pd.Series({"s": np.nan})])
def test_stamp_without_the_resolution_of_the_slide(tmp_path, mpp):
    path = write_stamp(tmp_path / "s.h5")
    with pytest.warns(UserWarning, match=r"coordinates of 1 files are in um .*s\.h5.*Pass mpp="):
        bag = read_features(path, mpp=mpp)
    assert (bag.coords, bag.size_level0, bag.tile_edge_um) == (None, None, 256.0)
    assert bag.shape == (5, 3)


def test_stamp_of_older_versions(tmp_path):
    v2 = write_h5(
        tmp_path / "v2.h5",
        attrs={"unit": "um", "tile_size": 256.0},
        feats=FEATURES,
        coords=COORDS / 2,
    )
    bag = read_features(v2, mpp=0.5)
    np.testing.assert_array_equal(bag.coords, COORDS)
    assert bag.tile_edge_um == 256.0
    v1 = write_h5(tmp_path / "v1.h5", feats=FEATURES, coords=COORDS)
    assert read_features(v1, mpp=0.5).coords is None


def test_implausible_resolution(tmp_path):
    path = write_stamp(tmp_path / "s.h5")
    with pytest.raises(ValueError, match=r"mpp of slide 's' must be 0\.1 to 2\.0 um/px, got 20"):
        read_features(path, mpp=20)
    with pytest.raises(TypeError, match="mpp must be a number"):
        read_features(path, mpp="0.5")


def test_sequoia(tmp_path):
    path = write_h5(
        tmp_path / "brca" / "s" / "s.h5", uni_features=FEATURES, cluster_features=FEATURES[:2] + 1
    )
    np.testing.assert_array_equal(read_features(path), FEATURES)
    np.testing.assert_array_equal(
        read_features(path, features="cluster_features"), FEATURES[:2] + 1
    )
    assert read_features(path, encoder="uni").coords is None
    with pytest.raises(ValueError, match="expected a data set 'feats', found"):
        read_features(path, features="feats")


def test_coordinates_belong_to_tiles_not_to_clusters(tmp_path):
    path = write_h5(
        tmp_path / "s.h5", uni_features=FEATURES, cluster_features=FEATURES[:2], coords=COORDS
    )
    np.testing.assert_array_equal(read_features(path).coords, COORDS)
    assert read_features(path, features="cluster_features").coords is None


def test_sequoia_with_two_encoders(tmp_path):
    path = write_h5(tmp_path / "s.h5", uni_features=FEATURES, resnet_features=FEATURES)
    with pytest.raises(ValueError, match=r"\['uni_features', 'resnet_features'\].*features="):
        read_features(path)
    assert read_features(path, features="resnet_features", encoder="resnet").shape == (5, 3)


def test_praline(tmp_path):
    path = write_h5(tmp_path / "s.h5", cluster_mean_features=FEATURES)
    bag = read_features(path)
    np.testing.assert_array_equal(bag, FEATURES)
    assert bag.coords is None


def test_compressed_features(tmp_path):
    path = tmp_path / "s.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=FEATURES, compression="gzip", chunks=(2, 3))
    np.testing.assert_array_equal(read_features(path), FEATURES)


@pytest.mark.parametrize(
    ("datasets", "text"),
    [
        ({"images": np.ones((2, 2))}, r"expected a data set 'features', found \['images'\]"),
        ({f"{x}_0": np.ones(1) for x in range(9)}, r"found \[.*'4_0'\] and 4 more"),
        ({"features": np.ones((2, 2), dtype=int)}, "expected features of floating point, got int"),
        ({"features": np.array([b"a", b"b"])}, "expected features of floating point"),
        ({"features": np.ones(2)}, r"expected features of shape .*got \(2,\)"),
        ({"features": np.ones((2, 0))}, r"expected features of shape .*got \(2, 0\)"),
        ({"features": np.ones((2, 2, 2))}, r"expected features of shape .*got \(2, 2, 2\)"),
        ({"features": np.ones((2, 2)), "coords": np.ones((3, 2))}, "2 rows of features but coords"),
        ({"features": np.ones((2, 2)), "coords": np.ones((2, 3))}, r"expected \(2, 2\)"),
        ({"features": np.ones((2, 2)), "coords": np.array([b"a", b"b"])}, "coords of numbers"),
        ({"coords": COORDS}, "holds coordinates of tiles, but no features"),
        ({"features/uni": np.ones((2, 2))}, "expected features of floating point, got a group"),
    ],
)
def test_wrong_files_are_named(tmp_path, datasets, text):
    path = write_h5(tmp_path / "bad.h5", **datasets)
    with pytest.raises(ValueError, match=text) as info:
        read_features(path)
    assert str(path) in str(info.value)
    assert len(str(info.value)) < 400


def test_objects_in_hdf5_are_refused(tmp_path):
    path = tmp_path / "objects.h5"
    with h5py.File(path, "w") as file:
        ragged = file.create_dataset("features", (2,), h5py.vlen_dtype(np.float32))
        ragged[0] = [1, 2]
    with pytest.raises(ValueError, match=r"objects\.h5.*floating point, got object"):
        read_features(path)


def test_coordinates_that_are_not_finite(tmp_path):
    coords = COORDS.astype(float)
    coords[2, 1] = np.nan
    bag = read_features(write_h5(tmp_path / "s.h5", features=FEATURES, coords=coords))
    with pytest.raises(ValueError, match=r"s\.h5.*coords contain NaN"):
        bag.coords  # noqa: B018


def test_files_that_are_damaged(tmp_path):
    content = write_trident(tmp_path / "s.h5").read_bytes()
    tensor = write_torch(tmp_path / "s.pt", torch.from_numpy(FEATURES)).read_bytes()
    for name, damaged in {
        "text.h5": b"text",
        "empty.h5": b"",
        "truncated.h5": content[:-200],
        "text.pt": b"text",
        "empty.pt": b"",
        "truncated.pt": tensor[:-100],
    }.items():
        path = tmp_path / name
        path.write_bytes(damaged)
        kind = "HDF5" if name.endswith("h5") else "torch"
        with pytest.raises(ValueError, match=rf"{name}.*not a readable {kind} file"):
            read_features(path)


def test_files_that_cannot_be_opened(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"not found: .*none\.h5"):
        read_features(tmp_path / "none.h5")
    with pytest.raises(FileNotFoundError, match=r"not found: .*none\.pt"):
        read_features(tmp_path / "none.pt")

    def forbid(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    path = write_trident(tmp_path / "s.h5")
    monkeypatch.setattr(h5py, "File", forbid)  # root may read everything
    with pytest.raises(PermissionError, match=r"cannot be opened: .*s\.h5.*Permission denied"):
        read_features(path)


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_forged_size_costs_no_memory(tmp_path, compression):
    path = tmp_path / "huge.h5"
    with h5py.File(path, "w") as file:
        shape, chunks = (1 << 30, 1024), (1, 1024)
        file.create_dataset("features", shape, "f4", chunks=chunks, compression=compression)
    with pytest.raises(ValueError, match=r"huge\.h5.*declares 4398046511104 bytes"):
        read_features(path)
    tensor = torch.zeros(1).expand(1 << 30, 1024)
    with pytest.raises(ValueError, match=r"huge\.pt.*declares 4398046511104 bytes"):
        read_features(write_torch(tmp_path / "huge.pt", tensor))


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("name", ["features", "coords"])
def test_a_part_that_was_never_written(tmp_path, compression, name):
    path = tmp_path / "half.h5"
    other, width = ("coords", 3) if name == "features" else ("features", 2)
    with h5py.File(path, "w") as file:
        file[other] = np.ones((40, 5 - width), dtype=np.float32)
        half = file.create_dataset(
            name, (40, width), "f4", chunks=(10, width), compression=compression
        )
        half[:30] = 1
    with pytest.raises(ValueError, match=rf"half\.h5.*incomplete: a part of its {name}"):
        read_features(path)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", ["torch", "legacy", "plain", "disguised"])
def test_pickles_are_never_run(tmp_path, kind):
    payload = Payload(tmp_path / "was-run")
    path = tmp_path / "s.pt"
    if kind == "plain":
        path.write_bytes(pickle.dumps(payload))
    else:
        value = {"features": torch.ones(2, 2), "x": payload} if kind == "disguised" else payload
        write_torch(path, value, _use_new_zipfile_serialization=kind != "legacy")
    with pytest.raises(ValueError, match=r"s\.pt.*holds Python objects.*refused"):
        read_features(path)
    assert not (tmp_path / "was-run").exists()
    # It does run where it is loaded.
    if kind == "plain":
        pickle.loads(path.read_bytes()).close()
        assert (tmp_path / "was-run").exists()


@pytest.mark.parametrize("name", ["s.npy", "s.npz"])
def test_pickles_in_files_of_numpy_are_never_run(tmp_path, name):
    save = np.save if name == "s.npy" else np.savez
    payload = np.array([Payload(tmp_path / "was-run")], dtype=object)
    save(tmp_path / name, **{"arr" if name == "s.npy" else "features": payload})
    with pytest.raises(ValueError, match=rf"{name}.*not a readable.*never loaded"):
        read_features(tmp_path / name)
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("name", ["s.pkl", "S.PICKLE"])
def test_other_files_that_can_hold_code(tmp_path, name):
    np.save(tmp_path / "objects.npy", np.array([Payload(tmp_path / "was-run")], dtype=object))
    (tmp_path / "objects.npy").rename(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name}.*files are not read, because .* code"):
        read_features(tmp_path / name)
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"weight": torch.ones(2, 2)}, r"expected an array 'features', found \['weight'\]"),
        ({"features": torch.ones(2, 2), "coords": torch.ones(3, 2)}, "2 rows of features but co"),
        ("text", "expected a tensor, or a dictionary with 'features'"),
        (torch.ones(2, 2, dtype=torch.int64), "dense tensor of floating point, got .*int64"),
        (torch.ones(2, 2).to_sparse(), "dense tensor of floating point, got torch.sparse_coo"),
        (torch.empty(2, 2, device="meta"), "dense tensor"),
        (torch.ones(3), r"expected features of shape .*got \(3,\)"),
        (torch.ones(2, 3, 4), r"expected features of shape .*got \(2, 3, 4\)"),
        (torch.ones(3, 0), r"expected features of shape .*got \(3, 0\)"),
    ],
)
def test_other_tensors_are_refused(tmp_path, value, text):
    with pytest.raises(ValueError, match=rf"s\.pt.*{text}"):
        read_features(write_torch(tmp_path / "s.pt", value))


def test_a_compressed_torch_file(tmp_path):
    path, packed = write_torch(tmp_path / "s.pt", torch.from_numpy(FEATURES)), tmp_path / "p.pt"
    with (
        zipfile.ZipFile(path) as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    with pytest.raises(ValueError, match=r"p\.pt.*not a readable torch file .it is compressed"):
        read_features(packed)


def test_a_file_that_changes(tmp_path):
    for path in (
        write_trident(tmp_path / "s.h5"),
        write_torch(tmp_path / "t.pt", torch.from_numpy(FEATURES)),
    ):
        bag = FeatureBag.from_file(path)
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        with pytest.raises(ValueError, match=rf"{path.name}.*has changed.*5 tiles of 3 features"):
            bag.features  # noqa: B018
        path.unlink()
        with pytest.raises(FileNotFoundError, match=rf"not found: .*{path.name}.*moved or deleted"):
            bag.features  # noqa: B018


def test_a_file_that_changes_within_the_same_nanosecond(tmp_path):
    path = write_trident(tmp_path / "s.h5")
    bag, stamp = FeatureBag.from_file(path), path.stat()
    with h5py.File(path, "a") as file:
        file["features"].resize(4, axis=0)
        file["coords"].resize(4, axis=0)
    assert path.stat().st_size == stamp.st_size, "the stamp alone would differ"
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    for name in ("features", "coords"):
        with pytest.raises(ValueError, match=r"s\.h5.*has changed"):
            getattr(bag, name)


def write_arrays(path, features, coords):
    """Write features and coordinates in the format of the ending."""
    ending = path.name.removeprefix("TCGA-A.8F-1")
    tensors = {"features": torch.from_numpy(features), "coords": torch.from_numpy(coords)}
    if ending == ".pt":
        torch.save(tensors | {"encoder": "uni", "mpp": 0.5}, path)
    elif ending == ".safetensors":
        save_file(tensors, path)
    elif ending == ".npz":
        np.savez_compressed(path, features=features, coords=coords)
    else:
        names = [f"feature_{number}" for number in range(features.shape[1])]
        table = pd.DataFrame(features, columns=names)
        table = table[names[::-1]].assign(tile="t", x=coords[:, 0], y=coords[:, 1])
        write = {".parquet": table.to_parquet, ".tsv": partial(table.to_csv, sep="\t")}
        write.get(ending, table.to_csv)(path, index=False)
    return path


@pytest.mark.parametrize("ending", ["pt", "safetensors", "npz", "csv", "csv.gz", "tsv", "parquet"])
def test_files_of_arrays(tmp_path, ending):
    features = np.random.default_rng(0).normal(size=(5, 9)).astype(np.float32)
    coords = np.arange(10).reshape(5, 2)
    bag = read_features(write_arrays(tmp_path / f"TCGA-A.8F-1.{ending}", features, coords))
    np.testing.assert_allclose(bag.features, features, rtol=1e-6)
    np.testing.assert_array_equal(bag.coords, coords)
    assert (bag.name, bag.shape, bag.coords.dtype) == ("TCGA-A.8F-1", (5, 9), np.int64)
    [found] = read_features(tmp_path)
    np.testing.assert_array_equal(found, bag)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", ["tensor", "dict", "list", "safetensors"])
def test_tensors_of_any_precision(tmp_path, dtype, kind):
    features = torch.from_numpy(FEATURES).to(dtype)
    value = {"dict": {"feats": features}, "list": list(features)}.get(kind, features)
    path = tmp_path / f"s.{'safetensors' if kind == 'safetensors' else 'pt'}"
    if kind == "safetensors":
        save_file({"embeddings": features}, path)
    else:
        torch.save(value, path)
    np.testing.assert_array_equal(read_features(path), features.float().numpy())


def test_numpy_file(tmp_path):
    np.save(tmp_path / "s.npy", FEATURES.astype(np.float16))
    np.testing.assert_allclose(read_features(tmp_path / "s.npy"), FEATURES, rtol=1e-3)
    # HE2RNA: level, x and y before the features.
    rows = np.random.default_rng(0).normal(size=(6, 20))
    rows[:, :3] = np.column_stack([np.full(6, 15), np.arange(6), np.arange(6) * 2])
    np.save(tmp_path / "h.npy", rows)
    with pytest.raises(ValueError, match=r"h\.npy.*first 3 columns are whole numbers"):
        read_features(tmp_path / "h.npy")


@pytest.mark.parametrize("ending", ["npy", "npz", "safetensors", "parquet", "pt"])
def test_damaged_files_of_arrays_are_named(tmp_path, ending):
    path = tmp_path / f"s.{ending}"
    for content in (b"", b"text", b"PK\x03\x04" + bytes(90), b"\x93NUMPY\x01"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"s\.{ending}' is not a readable"):
            read_features(path)


def test_tables_that_are_not_features(tmp_path):
    pd.DataFrame({"slide": ["a"], "age_1": [4.0]}).to_csv(tmp_path / "clinical.csv")
    with pytest.raises(ValueError, match=r"clinical\.csv.*numbered columns of features"):
        read_features(tmp_path / "clinical.csv")
    write_trident(tmp_path / "s.h5")
    assert read_features(tmp_path).names == ["s"]
    gap = pd.DataFrame(np.ones((2, 9)), columns=[f"f{n}" for n in (0, 1, 2, 3, 4, 5, 6, 7, 9)])
    gap.to_csv(tmp_path / "gap.csv")
    with pytest.raises(ValueError, match=r"gap\.csv.*numbered columns"):
        read_features(tmp_path / "gap.csv")


def write_lazyslide(path, features, corners, *, ids=None, name="uni_tiles"):
    """Write what SpatialData specifies for a table and the shapes that it annotates."""
    root = zarr.open_group(path, mode="a")
    table = root.require_group(f"tables/{name}")
    table.attrs.update({"region": "tiles", "region_key": "library_id", "instance_key": "tile_id"})
    table.create_array("X", data=features)
    ids = np.arange(len(features)) if ids is None else ids
    table.create_group("obs").create_array("tile_id", data=ids)
    boxes = shapely.box(*corners.T, *(corners.T + 256))
    shapes = pd.DataFrame({"geometry": shapely.to_wkb(boxes)})
    (path / "shapes" / "tiles").mkdir(parents=True, exist_ok=True)
    shapes.to_parquet(path / "shapes" / "tiles" / "shapes.parquet")
    return path


def test_lazyslide(tmp_path):
    ids = np.array([3, 0, 1, 4, 2])
    path = write_lazyslide(tmp_path / "TCGA-A.8F-1.zarr", FEATURES, COORDS, ids=ids)
    [bag] = read_features(tmp_path)
    assert (bag.name, bag.encoder, bag.path) == ("TCGA-A.8F-1", "uni", str(path))
    np.testing.assert_array_equal(bag, FEATURES)
    np.testing.assert_array_equal(bag.coords, COORDS[ids])
    write_lazyslide(path, FEATURES * 2, COORDS, name="conch_tiles")
    with pytest.raises(ValueError, match=r"expected one table, found \['conch_tiles', 'uni_tiles'"):
        read_features(path)
    np.testing.assert_array_equal(read_features(path, features="conch_tiles"), FEATURES * 2)


def test_zarr_that_can_run_code_is_refused(tmp_path):
    path = write_lazyslide(tmp_path / "s.zarr", FEATURES, COORDS)
    meta = path / "tables" / "uni_tiles" / "X" / "zarr.json"
    meta.write_text(meta.read_text().replace('"zstd"', '"numcodecs.pickle"'))
    with pytest.raises(ValueError, match=r"s\.zarr.*found \['numcodecs.pickle'\].*can run code"):
        read_features(path)
    other = write_lazyslide(tmp_path / "o.zarr", FEATURES, COORDS, ids=np.arange(5) + 9)
    with pytest.raises(ValueError, match=r"o\.zarr.*rows of features do not belong to the 5 tiles"):
        read_features(other)
