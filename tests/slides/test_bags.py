"""Values that flow between the steps."""

# SPDX-License-Identifier: BSD-3-Clause

import pickle

import numpy as np
import pytest

from sklearn_pk.slides import FeatureBag, SlideTiler, TiledSlide


def test_feature_bag_is_an_array():
    bag = FeatureBag(np.arange(6.0).reshape(3, 2), [[0, 0], [5, 0], [0, 5]], "x/s.svs")
    assert (len(bag), bag.shape, bag.name) == (3, (3, 2), "s")
    assert np.asarray(bag).dtype == np.float32
    assert np.asarray(bag, dtype=np.float64).dtype == np.float64
    assert bag.coords.dtype == np.int64


def test_feature_bag_refuses_wrong_shapes():
    with pytest.raises(ValueError, match=r"s\.svs: expected features of shape"):
        FeatureBag(np.ones(3), slide="s.svs")
    with pytest.raises(ValueError, match=r"3 rows of features but 2 of coords"):
        FeatureBag(np.ones((3, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="shape \\(n, 2\\)"):
        TiledSlide("s.svs", coords=np.zeros((2, 3)))


def test_tiled_slide_pickles_and_reads(small_slides):
    [slide] = SlideTiler(tile_size=64).fit_transform(small_slides[:1])
    copied = pickle.loads(pickle.dumps(slide))
    np.testing.assert_array_equal(copied.coords, slide.coords)
    np.testing.assert_array_equal(next(copied.iter_tiles()), next(slide.iter_tiles()))
    assert len(list(slide.iter_tiles())) == len(slide) > 0


def test_tiled_slide_is_frozen(small_slides):
    [slide] = SlideTiler(tile_size=64).fit_transform(small_slides[:1])
    with pytest.raises(ValueError, match="read-only"):
        slide.coords[0] = 1


def test_slide_without_tiles_opens_no_file():
    assert list(TiledSlide("not there.svs").iter_tiles()) == []
