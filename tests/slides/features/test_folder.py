"""Folders of features: what is read, skipped and refused."""

# SPDX-License-Identifier: BSD-3-Clause

import copy
import pickle
import shutil
import tracemalloc
import zlib

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from sklearn_pk.slides import FeatureBag, SlideTiler, read_features
from sklearn_pk.slides._features._folder import FeatureBags
from sklearn_pk.slides._features._store import store_key, store_path, write_bag, write_features


def write_h5(path, features=(4, 3), attrs=None, name="features", **datasets):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        if features is not None:
            values = np.full(features, 7, dtype=np.float32)
            # No two slides are alike.
            values[..., -1] = zlib.crc32(str(path).encode()) % 1000
            file[name] = values
        for other, value in datasets.items():
            file[other] = value
        file.attrs.update(attrs or {})
    return path


def write_torch(path, shape=(4, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = torch.full(shape, 8.0)
    values[..., -1] = zlib.crc32(str(path).encode()) % 1000
    torch.save(values, path)
    return path


@pytest.fixture
def bad_files(tmp_path):
    """Three files that cannot be read, beside a good one."""
    write_h5(tmp_path / "good.h5")
    (tmp_path / "a.h5").write_text("text")
    (tmp_path / "b.h5").write_bytes((tmp_path / "good.h5").read_bytes()[:-9])
    (tmp_path / "c.npy").write_bytes(b"")
    return tmp_path


def test_bags_are_sorted_named_and_lazy(tmp_path):
    for name in ("b", "TCGA-A1-01Z-00-DX1.8FE62F64-A0AE", "a"):
        write_h5(tmp_path / f"{name}.h5")
    bags = read_features(tmp_path)
    assert isinstance(bags, FeatureBags)
    assert bags.names == ["TCGA-A1-01Z-00-DX1.8FE62F64-A0AE", "a", "b"]
    assert [bag.path for bag in bags] == [str(tmp_path / f"{name}.h5") for name in bags.names]
    assert list(bags.failures.columns) == ["slide", "reason"]
    assert repr(bags) == "FeatureBags(3 slides, 3 features, 0 failures)"
    for copied in (pickle.loads(pickle.dumps(bags)), copy.deepcopy(bags)):
        assert copied.names == bags.names
        np.testing.assert_array_equal(copied[0], bags[0])
        pd.testing.assert_frame_equal(copied.failures, bags.failures)


def test_names_select_the_expression(tmp_path):
    for name in "cab":
        write_h5(tmp_path / f"{name}.h5")
    expression = pd.DataFrame({"ESR1": [1.0, 2.0, 3.0]}, index=list("bca"))
    bags = read_features(tmp_path)
    assert expression.loc[bags.names, "ESR1"].tolist() == [3, 1, 2]


def test_folders_are_not_read_into_memory(tmp_path):
    for number in range(6):
        write_h5(tmp_path / f"{number}.h5", (1000, 256))
    tracemalloc.start()
    bags = read_features(tmp_path)
    shapes = {bag.shape for bag in bags} | {(len(bag), 256) for bag in bags}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert shapes == {(1000, 256)}
    assert peak < bags[0].features.nbytes / 2


def test_unreadable_files_are_listed_and_the_rest_is_kept(bad_files):
    with pytest.warns(UserWarning, match=r"3 of 4 files .* the first: .*a\.h5.*See failures"):
        bags = read_features(bad_files)
    assert bags.names == ["good"]
    assert bags.failures["slide"].tolist() == [str(bad_files / f"{x}") for x in FAILED]
    assert bags.failures["reason"].str.contains("not a readable").all()


FAILED = ("a.h5", "b.h5", "c.npy")


def test_unreadable_files_can_be_an_error(bad_files):
    with pytest.raises(ValueError, match=r"(?s)3 of 4 files .*a\.h5.*b\.h5.*c\.npy"):
        read_features(bad_files, errors="raise")
    with pytest.raises(ValueError, match="errors must be 'skip' or 'raise', got 'empty'"):
        read_features(bad_files, errors="empty")


def test_no_readable_file(bad_files):
    (bad_files / "good.h5").unlink()
    for number in range(12):
        (bad_files / f"z{number:02}.pkl").touch()
    with pytest.raises(ValueError, match=r"(?s)15 of 15 files .*z06\.pkl.*and 5 more") as info:
        read_features(bad_files)
    assert "z07.pkl" not in str(info.value)


def test_folders_without_features(tmp_path):
    (tmp_path / "notes.txt").touch()
    write_h5(tmp_path / "._a.h5")  # as macOS writes beside a.h5
    with pytest.raises(ValueError, match=r"expected files of features .*found none"):
        read_features(tmp_path)
    write_h5(tmp_path / "patches" / "a_patches.h5", None, coords=np.ones((4, 2)))
    with pytest.raises(ValueError, match="found 1 files with coordinates only"):
        read_features(tmp_path)
    with pytest.raises(FileNotFoundError, match="none"):
        read_features(tmp_path / "none")


def test_trident_job_with_coordinates_beside_features(tmp_path):
    write_h5(tmp_path / "patches" / "s_patches.h5", None, coords=np.ones((4, 2)))
    write_h5(tmp_path / "features_uni_v1" / "s.h5", coords=np.ones((4, 2), dtype=np.int64))
    bags = read_features(tmp_path)
    assert (bags.names, len(bags.failures)) == (["s"], 0)


def test_clam_has_each_slide_twice(tmp_path):
    write_h5(tmp_path / "h5_files" / "a.h5", coords=np.ones((4, 2), dtype=np.int32))
    write_torch(tmp_path / "pt_files" / "a.pt")
    write_torch(tmp_path / "pt_files" / "b.pt")
    write_h5(tmp_path / "c.h5")
    write_torch(tmp_path / "c.pt")
    write_torch(tmp_path / "0.pt")
    bags = read_features(tmp_path)
    assert bags.names == ["0", "c", "a", "b"]
    values = {bag.name: bag.features[0, 0] for bag in bags}
    assert values == {"0": 8, "a": 7, "b": 8, "c": 7}


def test_a_torch_file_replaces_a_damaged_one(tmp_path):
    write_torch(tmp_path / "pt_files" / "a.pt")
    (tmp_path / "h5_files").mkdir()
    (tmp_path / "h5_files" / "a.h5").write_text("text")
    with pytest.warns(UserWarning, match=r"1 of 2 files could not be used.*a\.h5"):
        bags = read_features(tmp_path)
    assert [bag.path[-4:] for bag in bags] == ["a.pt"]


def test_sequoia_projects(tmp_path):
    for project, slide in (("brca", "s1"), ("brca", "s2"), ("luad", "s0")):
        folder = tmp_path / project / slide
        write_h5(folder / f"{slide}.h5", name="uni_features", cluster_features=np.ones((2, 3)))
        (folder / "complete_tile.txt").touch()
    bags = read_features(tmp_path)
    assert bags.names == ["s1", "s2", "s0"]
    assert {bag.shape for bag in bags} == {(4, 3)}
    with pytest.warns(UserWarning, match="2 files hold the same features as another one"):
        clusters = read_features(tmp_path, features="cluster_features")
    assert {bag.shape for bag in clusters} == {(2, 3)}


def test_stamp_warns_once_that_coordinates_are_missing(tmp_path):
    for name in "ab":
        attrs = {"unit": "um", "tile_size_um": 256.0}
        write_h5(tmp_path / f"{name}.h5", attrs=attrs, name="feats", coords=np.ones((4, 2)))
    with pytest.warns(UserWarning, match=r"coordinates of 2 files are in um.*a\.h5") as record:
        bags = read_features(tmp_path)
    assert len(record) == 1
    assert record[0].filename == __file__
    assert [bag.coords for bag in bags] == [None, None]
    with pytest.warns(UserWarning, match=r"coordinates of 1 files are in um.*b\.h5"):
        bags = read_features(tmp_path, mpp={"a": 0.5})
    assert bags[0].coords.tolist() == [[2, 2]] * 4
    bags = read_features(tmp_path, mpp=pd.Series({"a": 0.5, "b": 0.25}))
    assert [bag.coords[0, 0] for bag in bags] == [2, 4]


def test_several_encoders_are_named(tmp_path):
    for name, attrs, shape in (
        ("a", {"extractor": "uni2"}, (4, 3)),
        ("b", {"extractor": "uni2"}, (6, 3)),
        ("c", {"extractor": "ctranspath"}, (4, 2)),
    ):
        write_h5(tmp_path / f"{name}.h5", shape, attrs)
    with pytest.raises(
        ValueError,
        match=r"(?s)uni2-h, 3 features, [^\n]*: 2 files, such as .*a\.h5.*ctranspath, 2.*encoder=",
    ):
        read_features(tmp_path)
    assert read_features(tmp_path, encoder="uni2").names == ["a", "b"]
    with pytest.raises(ValueError, match=r"no features of the encoder 'uni'; found: ctransp.*uni2"):
        read_features(tmp_path, encoder="uni")


def test_several_widths_are_named(tmp_path):
    write_h5(tmp_path / "a.h5", (4, 3))
    write_h5(tmp_path / "b.h5", (4, 2))
    with pytest.raises(
        ValueError, match=r"(?s)3 features, [^\n]*: 1 files.*a\.h5.*2 features.*b\.h5"
    ):
        read_features(tmp_path)


def test_two_files_of_one_slide(tmp_path):
    one = write_h5(tmp_path / "x" / "s.h5")
    other = write_h5(tmp_path / "y" / "s.h5")
    with pytest.raises(ValueError, match=rf"two files of slide 's': '{one}' and '{other}'"):
        read_features(tmp_path)


def test_our_own_store(tmp_path, small_slides):
    tiled = SlideTiler(tile_size=64, random_state=0).fit_transform(small_slides)
    for slide in tiled:
        key = store_key(slide, "e")
        features = np.full((len(slide), 5), len(slide.name), dtype=np.float32)
        write_features(store_path(tmp_path, slide, key), slide, features, key, "e", "hash")
    bags = read_features(tmp_path, encoder="e")
    assert bags.names == ["a", "b", "c"]
    for bag, slide in zip(bags, tiled, strict=True):
        np.testing.assert_array_equal(bag.coords, slide.coords)
        assert bag.tile_edge_um == slide.tile_edge_um
    # The same slide, tiled in another way, in the same folder.
    key = store_key(tiled[0], "another")
    features = np.ones((len(tiled[0]), 5), dtype=np.float32)
    write_features(store_path(tmp_path, tiled[0], key), tiled[0], features, key, "e", "hash")
    with pytest.raises(ValueError, match=r"two files of slide 'a': .*in a store, they differ"):
        read_features(tmp_path)


def test_conversion_to_files_of_the_store(tmp_path):
    coords = np.arange(8, dtype=np.int64).reshape(4, 2)
    for name in ("a", "TCGA-A1-01Z-00-DX1.8FE62F64-A0AE"):
        write_h5(tmp_path / "theirs" / f"{name}.h5", attrs={"encoder": "uni"}, coords=coords)
    with h5py.File(tmp_path / "theirs" / "a.h5", "a") as file:
        file["coords"].attrs["patch_size_level0"] = 512
        file.attrs["tile_edge_um"] = 256.0
    theirs = read_features(tmp_path / "theirs")
    theirs.append(FeatureBag(np.empty((0, 3)), slide="x/empty.svs"))
    converted = theirs.to_store(tmp_path / "store")
    assert converted.names == theirs.names
    for bags in (converted, read_features(tmp_path / "store" / "a.h5")):
        bag = bags[1] if isinstance(bags, FeatureBags) else bags
        np.testing.assert_array_equal(bag, theirs[1])
        np.testing.assert_array_equal(bag.coords, coords)
        assert (bag.name, bag.size_level0, bag.tile_edge_um) == ("a", 512, 256.0)
    assert (converted[0].size_level0, converted[2].shape) == (None, (0, 3))
    assert read_features(tmp_path / "store", encoder="uni").names == theirs.names[:2]
    content = bytearray((tmp_path / "store" / "a.h5").read_bytes())
    content[content.index(theirs[1].features.tobytes())] ^= 1
    (tmp_path / "store" / "a.h5").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.h5"):
        converted[1].features  # noqa: B018


@pytest.mark.parametrize(("slides", "text"), [("aa", "2 bags have the slide 'a'"), (("",), "''")])
def test_conversion_needs_names(tmp_path, slides, text):
    bags = FeatureBags(FeatureBag(np.ones((1, 2)), slide=slide) for slide in slides)
    with pytest.raises(ValueError, match=text):
        bags.to_store(tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_list_of_bags_may_be_empty():
    assert repr(FeatureBags()) == "FeatureBags(0 slides, 0 failures)"
    assert FeatureBags([FeatureBag(np.ones((1, 2)), slide="s.ome.tiff")]).names == ["s"]


def test_failures_are_counted_among_all_files(bad_files):
    write_h5(bad_files / "uni.h5", attrs={"encoder": "uni"})
    # The encoder of unreadable files is unknown.
    with pytest.warns(UserWarning, match="3 of 5 files could not be used"):
        bags = read_features(bad_files, encoder="uni")
    assert (bags.names, len(bags.failures)) == (["uni"], 3)


@pytest.mark.parametrize("shape", [(8,), (1, 8)])
@pytest.mark.parametrize("kind", ["h5", "pt"])
@pytest.mark.parametrize("with_coords", [True, False])
def test_features_of_whole_slides_are_skipped(tmp_path, shape, kind, with_coords):
    folder = tmp_path / "slide_features_titan"
    if kind == "pt":
        write_torch(folder / "s.pt", shape)
    else:
        coords = {"coords": np.ones((4, 2), dtype=np.int64)} if with_coords else {}
        write_h5(folder / "s.h5", shape, **coords)
    with pytest.raises(ValueError, match="found 1 files with features of whole slides"):
        read_features(tmp_path)
    with pytest.raises(ValueError, match=r"s\.(h5|pt).*of a whole slide, as its folder says"):
        read_features(folder / f"s.{kind}")
    write_h5(tmp_path / "features_conch" / "s.h5", coords=np.ones((4, 2), dtype=np.int64))
    write_h5(tmp_path / "patches" / "s_patches.h5", None, coords=np.ones((4, 2)))
    bags = read_features(tmp_path)
    assert (bags.names, len(bags.failures)) == (["s"], 0)


def test_tiles_in_a_folder_of_that_name(tmp_path):
    write_h5(tmp_path / "slide_features_mine" / "s.h5")
    assert read_features(tmp_path).names == ["s"]


def write_stored(path, *, width=3, encoder="uni", weights="hash", mpp=0.5, n_tiles=4):
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    bag = FeatureBag(
        rng.normal(size=(n_tiles, width)),
        slide=path.stem,
        encoder=encoder,
        weights_hash=weights,
        mpp=mpp,
    )
    write_bag(path, bag)
    return path


@pytest.mark.parametrize(
    ("other", "chosen"),
    [
        ({"encoder": "virchow"}, {"encoder": "virchow"}),
        ({"weights": "another"}, {"weights_hash": "anoth"}),
        ({"mpp": 0.25}, {"tile_mpp": 0.25}),
    ],
)
def test_a_cohort_of_several_kinds_is_refused_or_chosen(tmp_path, other, chosen):
    for name in "abc":
        write_stored(tmp_path / f"{name}.h5")
    write_stored(tmp_path / "d.h5", **other)
    with pytest.raises(ValueError, match=r"(?s)several encoders, weights, resol.*d\.h5.*encoder="):
        read_features(tmp_path)
    assert read_features(tmp_path, **chosen).names == ["d"]
    wrong = {name: 9.0 if name == "tile_mpp" else "none" for name in chosen}
    with pytest.raises(ValueError, match="no features of the .*found: "):
        read_features(tmp_path, **wrong)


def test_magnifications_of_trident_are_not_mixed(tmp_path):
    for name, magnification in (("a", 20), ("b", 10)):
        path = write_h5(tmp_path / f"{magnification}x" / f"{name}.h5", coords=np.ones((4, 2)))
        with h5py.File(path, "a") as file:
            file["coords"].attrs["target_magnification"] = magnification
    with pytest.raises(ValueError, match=r"(?s)[^.]1 um/px.*0\.5 um/px"):
        read_features(tmp_path)
    assert read_features(tmp_path, tile_mpp=0.5).names == ["a"]


def test_encoders_may_be_spelled_differently(tmp_path):
    for name, encoder in (("a", "UNI"), ("b", "uni_v1"), ("c", "uni")):
        write_h5(tmp_path / f"{name}.h5", attrs={"encoder": encoder})
    assert read_features(tmp_path, encoder="Uni").names == ["a", "b", "c"]


def test_few_files_of_another_width_or_without_tiles_are_left_out(tmp_path):
    for name in "abcd":
        write_stored(tmp_path / f"{name}.h5")
    write_stored(tmp_path / "wide.h5", width=5)
    write_h5(tmp_path / "empty.h5", (0, 3), {"encoder": "uni", "weights_hash": "hash"})
    with pytest.warns(UserWarning, match=r"2 of 6 files could not be used; .*empty.* 0 tiles"):
        bags = read_features(tmp_path)
    assert bags.names == list("abcd")
    assert bags.failures["reason"].str.contains("min_tiles=1|has 5 features, 5 others").all()
    with pytest.raises(ValueError, match=r"(?s)2 of 6 files.*empty.*wide"):
        read_features(tmp_path, errors="raise")
    with pytest.raises(ValueError, match=r"(?s)6 of 6 files.*fewer than min_tiles=5"):
        read_features(tmp_path, min_tiles=5)
    with pytest.raises(ValueError, match="min_tiles must be a whole number"):
        read_features(tmp_path, min_tiles=-1)


@pytest.mark.parametrize("write", [write_h5, write_stored])
def test_copies_of_a_slide_are_told(tmp_path, write):
    first = write(tmp_path / "a.h5")
    (tmp_path / "copies").mkdir()
    shutil.copy(first, tmp_path / "copies" / "a.h5")
    write(tmp_path / "b.h5")
    with pytest.warns(UserWarning, match=r"1 of 3 files could not be used; .*is a copy of .*a\.h5"):
        assert read_features(tmp_path).names == ["a", "b"]
    (tmp_path / "copies" / "a.h5").rename(tmp_path / "a (1).h5")
    with h5py.File(tmp_path / "a (1).h5", "a") as file:
        file.attrs.pop("slide", None)
    with pytest.warns(UserWarning, match=r"1 files hold the same features .*a \(1\)\.h5"):
        assert sorted(read_features(tmp_path).names) == ["a", "a (1)", "b"]


def test_bags_of_a_patient(tmp_path):
    coords = {name: np.full((n, 2), n) for name, n in (("a1", 3), ("a2", 4), ("b1", 2))}
    for name, corners in coords.items():
        write_h5(tmp_path / f"{name}.h5", (len(corners), 5), coords=corners)
    bags = read_features(tmp_path)
    by_name = {"a1": "A", "a2": "A", "b1": "B"}
    for patients in (["A", "A", "B"], by_name, pd.Series(by_name), np.array(["A", "A", "B"])):
        joined = bags.by_patient(patients)
        assert (joined.names, [bag.shape for bag in joined]) == (["A", "B"], [(7, 5), (2, 5)])
    both = pickle.loads(pickle.dumps(joined[0]))
    assert len(pickle.dumps(joined[0])) < 4000
    np.testing.assert_array_equal(both, np.concatenate([bags[0], bags[1]]))
    np.testing.assert_array_equal(both.coords, np.concatenate([coords["a1"], coords["a2"]]))
    assert (both.slides, both.slide_of_tile.tolist()) == (("a1", "a2"), [0] * 3 + [1] * 4)
    assert both.path == bags[0].path
    for wrong, text in (
        (["A"], "got 1 for 3 bags"),
        (["A", None, "B"], "slide 'a2' is missing"),
        ({"a1": "A"}, "no patient for 2 of 3 slides, such as 'a2'"),
    ):
        with pytest.raises(ValueError, match=text):
            bags.by_patient(wrong)
    memory = FeatureBags([FeatureBag(np.ones((2, 3)), slide="a"), FeatureBag(np.ones((2, 4)))])
    with pytest.raises(ValueError, match="patient 'A': expected slides of the same number"):
        memory.by_patient(["A", "A"])


LATIN_1 = b"M\xfcller".decode(errors="surrogateescape")


@pytest.mark.parametrize("name", ["n" * 240, "\u00fc" * 120, ".hidden", LATIN_1, "a.b c"])
def test_any_name_of_a_slide_is_stored_and_found(tmp_path, name, small_slides):
    slide = tmp_path / f"{name}.tiff"
    shutil.copy(small_slides[0], slide)
    [tiled] = SlideTiler(tile_size=64, random_state=0).fit_transform([slide])
    key = store_key(tiled, "e")
    path = store_path(tmp_path / "store", tiled, key)
    write_features(path, tiled, np.ones((len(tiled), 5), np.float32), key, "e", "hash")
    [bag] = read_features(tmp_path / "store")
    assert (bag.name, path.name[0]) == (name, path.name[0].replace(".", "_"))
    [again] = FeatureBags([bag]).to_store(tmp_path / "again")
    assert again.name == name


def test_long_names_that_begin_alike_stay_apart(tmp_path):
    bags = FeatureBags(FeatureBag(np.ones((1, 2)), slide="n" * 230 + end) for end in "ab")
    assert len({bag.path for bag in bags.to_store(tmp_path)}) == 2


def test_html_of_bags_is_escaped():
    bags = FeatureBags(
        [FeatureBag(np.ones((5, 3)), slide=f"<b>{number}.svs", mpp=0.5) for number in range(12)]
    )
    page = bags._repr_html_()
    assert "FeatureBags(12 slides, 3 features, 0 failures)" in page
    assert page.count("&lt;b&gt;") == 10
    assert "The first 10 are shown." in page
    assert "<b>" not in page + bags[0]._repr_html_()
    assert "<td>0.5</td>" in bags[0]._repr_html_()
    assert "0 slides" in FeatureBags()._repr_html_()
