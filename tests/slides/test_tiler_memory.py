"""The joblib cache of tiles between runs."""

# SPDX-License-Identifier: BSD-3-Clause

import shutil
from pathlib import Path

import joblib
import numpy as np
import pytest

from sklearn_pk.slides import SlideTiler, _tiler


@pytest.fixture
def slides(tmp_path, small_slides):
    return [shutil.copy(path, tmp_path) for path in small_slides]


@pytest.fixture
def tile(tmp_path, monkeypatch):
    """Tile as a new process would; return which slides were tiled again, and the result."""
    done = []
    original = _tiler.tile_slide

    def note(row, *rest):
        done.append(Path(row.path).name)
        return original(row, *rest)

    monkeypatch.setattr(_tiler, "tile_slide", note)

    def tile(slides, memory=tmp_path / "memory", **params):
        _tiler._cache.clear()
        done.clear()
        params = {"tile_size": 64, "random_state": 0, "memory": memory} | params
        return done, SlideTiler(**params).fit_transform(slides)

    return tile


def names(slides):
    return [Path(path).name for path in slides]


def test_a_second_run_finds_the_tiles(slides, tile, tmp_path):
    done, first = tile(slides)
    assert done == names(slides)
    done, second = tile(slides)
    assert done == []
    for slide, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(slide.coords, other.coords)
        assert (slide.path, slide.content, slide.params) == (
            other.path,
            other.content,
            other.params,
        )
    memory = joblib.Memory(str(tmp_path / "memory"), verbose=0)
    assert tile(slides, memory=memory)[0] == []


def test_changes_that_change_the_tiles(slides, tile, monkeypatch):
    tile(slides)
    for params in ({"tile_size": 32}, {"overlap": 8}, {"random_state": 1}, {"tissue": None}):
        assert tile(slides, **params)[0] == names(slides), params
        assert tile(slides, **params)[0] == [], params
    shutil.copy(slides[1], slides[0])
    done, [slide, other] = tile(slides[:2])
    assert done == names(slides[:1])
    np.testing.assert_array_equal(slide.coords, other.coords)
    monkeypatch.setattr(_tiler, "_versions", lambda: "another")
    assert tile(slides)[0] == names(slides)


def test_masks_are_distinguished_and_functions_not_cached(slides, tile):
    one = slides[:1]
    mask = np.zeros((401, 333), dtype=bool)
    mask[:200] = True
    for tissue in (mask, ~mask):
        assert tile(one, tissue=tissue)[0] == names(one)
        assert tile(one, tissue=tissue)[0] == []
    for _ in range(2):
        assert tile(one, tissue=lambda rgb: np.ones(rgb.shape[:2], dtype=bool))[0] == names(one)


def test_a_failure_is_tried_again(slides, tile, tmp_path):
    bad = tmp_path / "bad.tiff"
    bad.write_bytes(Path(slides[0]).read_bytes()[:3000])
    for _ in range(2):
        with pytest.warns(UserWarning, match="1 slides have no tiles"):
            done, tiled = tile([slides[0], str(bad)], errors="empty")
        assert done[-1] == "bad.tiff"
        assert [len(slide) > 0 for slide in tiled] == [True, False]


@pytest.mark.parametrize("kept", [0, 100])
def test_a_damaged_cache_is_computed_again(slides, tile, tmp_path, kept, caplog):
    _, expected = tile(slides)
    for path in (tmp_path / "memory").rglob("output.pkl"):
        path.write_bytes(path.read_bytes()[:kept])
    done, tiled = tile(slides)
    assert done == names(slides)
    assert "Exception while loading results" in caplog.text
    for slide, other in zip(tiled, expected, strict=True):
        np.testing.assert_array_equal(slide.coords, other.coords)
    assert tile(slides)[0] == []


def test_a_folder_by_its_relative_path(slides, tile, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tile(slides, memory="here")
    assert (tmp_path / "here").is_dir()
    assert tile(slides, memory=tmp_path / "here")[0] == []


class Full:
    """The interface of joblib.Memory on a disk that is full."""

    location = "somewhere"

    def cache(self, function):
        def call(*args):
            raise OSError(28, "No space left on device")

        return call


@pytest.mark.parametrize("errors", ["raise", "empty"])
def test_a_cache_that_cannot_be_written_is_not_a_bad_slide(slides, tile, errors):
    with pytest.raises(OSError, match=r"a\.tiff' cannot be kept in memory='somewhere'") as caught:
        tile(slides, memory=Full(), errors=errors)
    assert "No space left on device" in str(caught.value)
    assert "MB are free there" in str(caught.value)


def test_a_cache_in_a_file(slides, tile, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"choose another folder|File exists|Not a directory"):
        tile(slides, memory=tmp_path / "file")


def test_the_warning_points_to_the_line_of_the_user(tmp_path):
    bad = tmp_path / "bad.tiff"
    bad.write_bytes(b"no slide")
    with pytest.warns(UserWarning, match="1 slides have no tiles") as caught:
        SlideTiler(errors="empty").fit_transform([str(bad)])
    assert {Path(each.filename).name for each in caught} == {Path(__file__).name}
