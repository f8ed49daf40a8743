"""Slide cohorts with planted expression."""

# SPDX-License-Identifier: BSD-3-Clause

from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import LinearRegression

from sklearn_pk.datasets import load_brca_expression, make_slide_cohort
from sklearn_pk.datasets._slide_cohort import (
    compose_slide,
    draw_layout,
    explained_fraction,
    patch_colors,
    principal_scores,
    texture_library,
    write_slide,
)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_slide_cohort(
        12, random_state=0, out_dir=tmp_path_factory.mktemp("cohort"), slide_size=(1100, 900)
    )


def test_slides_are_pyramidal_with_resolution(cohort):
    with openslide.OpenSlide(cohort.slides[0]) as slide:
        assert slide.level_dimensions == ((1100, 900), (550, 450))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        assert slide.properties["openslide.level[1].tile-width"] == "256"
        thumbnail = np.asarray(slide.get_thumbnail((275, 225)).convert("RGB"))
    bright = thumbnail.min(axis=2) > 220
    assert 0.1 < bright.mean() < 0.9, "tissue and background"


def test_patients_and_rows(cohort):
    assert len(cohort.slides) == len(cohort.patients) == len(cohort.expression) == 12
    patients, counts = np.unique(cohort.patients, return_counts=True)
    assert len(patients) == 10
    assert sorted(counts) == [1] * 8 + [2] * 2
    assert list(cohort.expression.index) == [Path(path).stem for path in cohort.slides]
    for patient in patients[counts == 2]:
        rows = cohort.expression[cohort.patients == patient].to_numpy()
        assert_array_equal(rows[0], rows[1])
    real = {tuple(row) for row in load_brca_expression().expression.to_numpy()}
    assert all(tuple(row) in real for row in cohort.expression.to_numpy())


def test_same_seed_same_bytes_for_any_n_jobs(cohort, tmp_path):
    again = make_slide_cohort(
        12, random_state=0, out_dir=tmp_path, slide_size=(1100, 900), n_jobs=2
    )
    for path, other in zip(cohort.slides, again.slides, strict=True):
        assert Path(path).read_bytes() == Path(other).read_bytes()
    pd.testing.assert_frame_equal(cohort.expression, again.expression)
    same, other = (
        make_slide_cohort(2, random_state=seed, out_dir=tmp_path / f"{seed}", slide_size=(512, 512))
        for seed in (0, 1)
    )
    assert not other.expression.equals(same.expression)
    for path, another in zip(same.slides, other.slides, strict=True):
        assert Path(path).read_bytes() != Path(another).read_bytes()


def test_number_of_slides(tmp_path):
    for n_slides in (2, 5):
        cohort = make_slide_cohort(
            n_slides, random_state=0, out_dir=tmp_path, slide_size=(512, 512), two_slide_share=1.0
        )
        assert len(cohort.slides) == n_slides
        assert len(set(cohort.patients)) == (n_slides + 1) // 2


def test_strength_and_noise(tmp_path):
    def compose(**planting):
        return make_slide_cohort(
            6, random_state=0, out_dir=tmp_path, slide_size=(512, 512), **planting
        )

    nothing = compose(strength=0, noise=0)
    assert_allclose(nothing.composition, 0.25)
    assert (nothing.planted_r2 == 0).all()
    weak, strong = compose(strength=0.5, noise=0), compose(strength=1, noise=0)
    logs = [np.log(c.composition.div(c.composition.iloc[:, 0], axis=0)) for c in (weak, strong)]
    assert_allclose(2 * logs[0], logs[1], atol=1e-8)
    noisy = compose(strength=1, noise=0.5)
    spread = np.log(noisy.composition.div(noisy.composition.iloc[:, 0], axis=0)) - logs[1]
    assert 0.25 < spread.iloc[:, 1:].to_numpy().std() < 1.0


def test_planted_r2_is_that_of_a_regression_on_the_components(cohort):
    assert cohort.planted_r2.between(0, 1).all()
    table = load_brca_expression().expression
    rows = [np.flatnonzero((table == row).all(axis=1))[0] for row in cohort.expression.to_numpy()]
    model = LinearRegression().fit(principal_scores(table, 3)[rows], cohort.expression)
    residual = cohort.expression - model.predict(principal_scores(table, 3)[rows])
    expected = 1 - residual.var() / cohort.expression.var()
    assert_allclose(cohort.planted_r2, expected, atol=1e-8)


def test_composition_depends_on_the_components():
    table = load_brca_expression().expression
    scores = principal_scores(table, 3)
    assert_allclose(scores.mean(axis=0), 0, atol=1e-10)
    assert_allclose(scores.std(axis=0), 1)
    r2 = explained_fraction(table.to_numpy(), scores)
    assert 0.4 < np.average(r2, weights=table.var()) < 0.5
    assert r2.max() < 1


def test_noise_free_composition_is_a_function_of_expression(tmp_path):
    cohort = make_slide_cohort(
        6, random_state=0, out_dir=tmp_path, slide_size=(512, 512), noise=0, two_slide_share=0.5
    )
    logs = np.log(cohort.composition.div(cohort.composition["keratin_rich"], axis=0)).iloc[:, 1:]
    table = load_brca_expression().expression
    rows = [np.flatnonzero((table == row).all(axis=1))[0] for row in cohort.expression.to_numpy()]
    assert_allclose(logs, principal_scores(table, 3)[rows], atol=1e-8)


def test_layout_has_the_given_fractions():
    fractions = np.array([0.1, 0.2, 0.3, 0.4])
    layout = draw_layout(fractions, (40, 50), np.random.RandomState(0))
    assert_allclose(np.bincount(layout[layout >= 0]) / (layout >= 0).sum(), fractions, atol=0.01)
    assert (layout < 0).mean() > 0.1


def test_textures_differ():
    textures, background = texture_library()
    density = [patch_colors(patches)[:, :3].mean() for patches in [*textures, background]]
    assert density == sorted(density, reverse=True)
    assert min(map(len, textures)) > 50
    assert not any(np.array_equal(textures[0][0], other[0]) for other in textures[1:])


def test_pixels_come_from_the_shipped_slide():
    textures, _ = texture_library()
    image = compose_slide(np.array([1.0, 0, 0, 0]), (640, 640), seed=0)
    center = image[256:384, 256:384]
    turned = [np.rot90(c, k) for c in (center, center[::-1]) for k in range(4)]
    assert any((textures[0] == patch).all(axis=(1, 2, 3)).any() for patch in turned)


def test_write_slide_keeps_the_pixels(tmp_path):
    image = compose_slide(np.array([0.25, 0.25, 0.25, 0.25]), (600, 520), seed=1)
    write_slide(tmp_path / "a.tif", image, 0.25)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]
    with openslide.OpenSlide(tmp_path / "a.tif") as slide:
        read = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.25)
    assert np.abs(read.astype(int) - image).mean() < 6


def test_bad_input(tmp_path):
    with pytest.raises(
        ValueError, match="n_slides=900 .* requires 750 patients, but there are 250"
    ):
        make_slide_cohort(900, out_dir=tmp_path)
    with pytest.raises(ValueError, match=r"at least 512 px, got \(100, 600\)"):
        make_slide_cohort(4, out_dir=tmp_path, slide_size=(100, 600))
    with pytest.raises(ValueError, match="'n_slides' parameter of make_slide_cohort"):
        make_slide_cohort(0, out_dir=tmp_path)
