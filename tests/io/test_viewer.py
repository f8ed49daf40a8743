"""The viewer of a map, in a real browser."""

# SPDX-License-Identifier: BSD-3-Clause

import io
import re

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from sklearn_pk.io import export_map
from sklearn_pk.plotting import SpatialExpressionDisplay
from sklearn_pk.slides import SlideTiler

EVIL = "<img src=x onerror=alert(1)></script>"
GENES = ["ESR1", "MKI67", EVIL, *(f"GENE{number}" for number in range(20))]


def wait_for(page, condition):
    """Wait until a condition holds; that of Playwright needs eval, which the page forbids."""
    for _ in range(500):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"not within 10 s: {condition}")


@pytest.fixture(scope="module")
def tiled(cmu_slide):
    [tiled] = SlideTiler(tile_size=128).fit_transform([cmu_slide])
    return tiled


@pytest.fixture(scope="module")
def tiles(tiled):
    rng = np.random.default_rng(0)
    smooth = np.sin(tiled.coords / 300).sum(axis=1)[:, np.newaxis] + rng.normal(size=len(GENES))
    index = pd.MultiIndex.from_arrays(tiled.coords.T, names=["x", "y"])
    values = smooth + 0.1 * rng.normal(size=smooth.shape)
    table = pd.DataFrame(values.astype(np.float32), index=index, columns=GENES)
    table.attrs.update(slide=tiled.path, size_level0=tiled.size_level0)
    return table


@pytest.fixture(scope="module")
def report():
    significant = np.arange(len(GENES)) != 1
    reasons = np.where(significant, "", "Pearson p >= 0.05")
    return pd.DataFrame({"r": 0.12, "significant": significant, "reason": reasons}, index=GENES)


@pytest.fixture(scope="module")
def page(open_page, tiled, tiles, report, tmp_path_factory):
    path = tmp_path_factory.mktemp("viewer") / "map.html"
    options = {"report": report, "units": "log2 TPM", "reference": [tiles, tiles + 1]}
    export_map(tiled, tiles, path, **options)
    page = open_page(path, width=1200, height=800)
    wait_for(page, "views.map.viewer.isOpen() && placement(views.map)")
    return page


@pytest.fixture(autouse=True)
def start(page):
    """Show the first gene with the defaults, whatever an earlier test has done."""
    page.evaluate(
        """$("search").value = ""; $("limits").value = "slide"; $("opacity").value = 60;
        search(); select(0); views.map.viewer.viewport.goHome(true)"""
    )


def position_of(page, number):
    """Return where the centre of a tile is on the page."""
    return page.evaluate(
        """number => {
            const place = placement(views.map), box = $("map").getBoundingClientRect();
            return [box.left + place.left + (x[number] + data.step / 2) * place.scale,
                    box.top + place.top + (y[number] + data.step / 2) * place.scale];
        }""",
        number,
    )


def color_of(page, number):
    """Return the colour of the map in the centre of a tile."""
    return page.evaluate(
        """number => {
            const place = placement(views.map), canvas = views.map.canvas;
            return [...canvas.getContext("2d").getImageData(
                place.left + (x[number] + data.step / 2) * place.scale,
                place.top + (y[number] + data.step / 2) * place.scale, 1, 1).data];
        }""",
        number,
    )


def test_nothing_is_wrong_and_nothing_leaves(page):
    page.click("#beside")
    wait_for(page, "views.plain.viewer.isOpen()")
    page.click("#beside")
    assert page.problems == []
    assert [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert len([url for url in page.requests if url.startswith("file:")]) == 1


def test_title_says_how_well_the_gene_is_predicted(page):
    assert page.inner_text("#gene") == "ESR1"
    assert page.inner_text("#verdict") == "held-out r = 0.12, significant"
    assert page.title() == "ESR1: held-out r = 0.12, significant (cmu_small_region)"
    page.click("text=MKI67")
    verdict = "held-out r = 0.12, not significant (Pearson p >= 0.05)"
    assert page.inner_text("#verdict") == verdict
    assert page.get_attribute("#header", "class") == "grey"
    red, green, blue, alpha = color_of(page, 5)
    assert red == green == blue
    assert alpha == 255


def test_search(page):
    assert page.inner_text("#count") == "23 of 23 genes"
    page.fill("#search", "gene1")
    assert page.inner_text("#count") == "11 of 23 genes"
    assert page.locator("#genes button:visible").first.inner_text() == "GENE1"
    page.press("#search", "Enter")
    assert page.inner_text("#gene") == "GENE1"
    page.fill("#search", "no such gene")
    page.press("#search", "Enter")
    assert page.inner_text("#gene") == "GENE1"


def test_names_are_text(page):
    page.fill("#search", "onerror")
    page.press("#search", "Enter")
    assert page.inner_text("#gene") == EVIL
    x, y = position_of(page, 3)
    page.mouse.move(x, y)
    assert page.inner_text("#tip").startswith(EVIL)
    assert page.locator("main img, aside img, #tip img").count() == 0
    assert page.problems == []


@pytest.mark.parametrize("number", [0, 7, 40])
def test_hover(page, tiles, number):
    x, y = position_of(page, number)
    page.mouse.move(x, y)
    text = page.inner_text("#tip")
    value = tiles["ESR1"].iloc[number]
    shown = re.match(r"ESR1: (\S+) log2 TPM\n(\d+) % of the tiles", text)
    assert_allclose(float(shown[1]), value, rtol=1e-3)
    assert abs(int(shown[2]) - 100 * (tiles["ESR1"] <= value).mean()) <= 1
    assert text.endswith("x = {}, y = {}".format(*tiles.index[number]))
    page.mouse.move(10, 400)
    assert page.evaluate("$('tip').style.display") == "none"


def test_opacity(page):
    opacity = "views.map.canvas.style.opacity"
    assert page.evaluate(opacity) == "0.6"
    page.locator("#opacity").focus()
    page.keyboard.press("ArrowRight")
    wait_for(page, f"{opacity} === '0.61'")


def test_same_picture_as_the_display(page, tiles, tiled):
    display = SpatialExpressionDisplay.from_predictions(tiles, gene="ESR1", slide=tiled)
    expected = display.tiles_.to_rgba(display.values, bytes=True)[:, :3].astype(int)
    found = np.array([color_of(page, number)[:3] for number in range(len(tiles))])
    # One step of the colour map.
    assert np.abs(found - expected).max() <= 6
    # Tiles are where the display has them, relative to the slide.
    place = page.evaluate("placement(views.map)")
    x, y = (np.array(position_of(page, number)) for number in (0, 30))
    corners = tiles.index.to_frame().to_numpy()
    assert_allclose((y - x) / place["scale"], corners[30] - corners[0], atol=1e-3)
    # The slide below has the colours of the file.
    page.fill("#opacity", "0")
    shot = page.screenshot()
    pixels = mpl.image.imread(io.BytesIO(shot)) * 255
    at = position_of(page, 30)
    span = int(40 * place["scale"])
    shown = pixels[int(at[1]) - span : int(at[1]) + span, int(at[0]) - span : int(at[0]) + span, :3]
    centre = (corners[30] + tiled.size_level0 / 2) / display.downsample
    half = int(40 / display.downsample)
    own = display.image[
        int(centre[1]) - half : int(centre[1]) + half, int(centre[0]) - half : int(centre[0]) + half
    ]
    assert_allclose(shown.mean(axis=(0, 1)), own.mean(axis=(0, 1)), atol=8)


def test_limits(page, tiles):
    def ends():
        return [float(page.inner_text(each)) for each in ("#from", "#to")]

    assert_allclose(ends(), np.percentile(tiles["ESR1"], [1, 99]), rtol=1e-3)
    page.select_option("#limits", "common")
    both = np.concatenate([tiles["ESR1"], tiles["ESR1"] + 1])
    assert_allclose(ends(), np.percentile(both, [1, 99]), rtol=1e-3)
    assert "common to 2 slides" in page.inner_text("#limits")
    page.select_option("#limits", "fixed")
    page.fill("#low", "-5")
    page.fill("#high", "100")
    assert ends() == [-5, 100]
    # Typed limits stay for other genes, and make a map of one colour here.
    page.click("text=GENE3 >> nth=0")
    assert ends() == [-5, 100]
    assert len({tuple(color_of(page, number)) for number in range(30)}) < 12


def test_scale_bar_and_zoom(page):
    def bar():
        text = page.inner_text("#map .scale span")
        length = page.evaluate("$('map').querySelector('.scale div').clientWidth")
        return float(text.split()[0]) * (1000 if text.endswith("mm") else 1), length

    for zoom in (1, 5):
        page.evaluate(f"views.map.viewer.viewport.zoomTo({zoom}, null, true)")
        wait_for(page, f"Math.abs(views.map.viewer.viewport.getZoom(true) - {zoom}) < 1e-6")
        page.wait_for_timeout(100)
        length, pixels = bar()
        scale = page.evaluate("placement(views.map).scale")
        assert_allclose(length / pixels, 0.499 / scale, rtol=0.02)


def test_slide_beside_the_map_follows(page):
    page.click("#beside")
    wait_for(page, "views.plain.viewer.isOpen()")
    box = page.locator("#map").bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 300)
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(800)
    bounds = [
        page.evaluate(f"(b => [b.x, b.y, b.width])(views.{name}.viewer.viewport.getBounds(true))")
        for name in ("map", "plain")
    ]
    assert_allclose(*bounds, atol=1e-3)
    page.click("#beside")


def test_large_map(browser, cmu_slide, tmp_path):
    rng = np.random.default_rng(0)
    corners = np.array([(x, y) for x in range(125) for y in range(160)]) * 16
    index = pd.MultiIndex.from_arrays(corners.T, names=["x", "y"])
    genes = [f"G{number}" for number in range(500)]
    table = pd.DataFrame(rng.normal(size=(20_000, 500)).astype(np.float32), index, genes)
    path = tmp_path / "map.html"
    export_map(cmu_slide, table, path, tile_size=16)
    assert path.stat().st_size < 30e6
    page = browser.new_page()
    page.goto(path.as_uri())
    wait_for(page, "views.map.viewer.isOpen()")
    page.fill("#search", "G499")
    page.press("#search", "Enter")
    low, high = page.evaluate("[gene.low + codes[77] * (gene.high - gene.low) / most, gene.high]")
    assert abs(low - table["G499"].iloc[77]) < 0.02
    assert_allclose(high, table["G499"].max(), rtol=1e-6)
    page.close()
    wide = pd.concat([table, table.iloc[:, :101].add_prefix("H")], axis=1)
    with pytest.raises(ValueError, match=r"holds up to 12,000,000 values, got 601 genes"):
        export_map(cmu_slide, wide, path)


def test_map_without_slide(browser, tiles, tiled, tmp_path):
    from sklearn_pk.slides import FeatureBag

    bag = FeatureBag(np.ones((len(tiled), 2)), tiled.coords, "S1", tiled.size_level0)
    with pytest.warns(UserWarning, match="Pass the path of the slide instead of the bag"):
        export_map(bag, tiles, tmp_path / "map.html")
    page = browser.new_page()
    page.goto((tmp_path / "map.html").as_uri())
    wait_for(page, "views.map.viewer.isOpen()")
    assert page.inner_text("#verdict") == "held-out accuracy not given"
    assert page.locator("#map .scale").is_hidden()
    page.close()


def test_full_resolution(browser, tiles, tiled, tmp_path):
    folder = tmp_path / "a b_files"
    export_map(tiled, tiles, tmp_path / "a b.html", tiles=True)
    levels = sorted(int(path.name) for path in folder.iterdir())
    assert levels == list(range(13))  # 2,967 pixels
    assert len(list((folder / "12").iterdir())) == 5 * 6
    page, answers = browser.new_page(), []
    page.on("console", lambda line: answers.append(line.text))
    page.on("requestfailed", lambda request: answers.append(request.url))
    page.on("requestfinished", lambda request: answers.append(request.url))
    page.goto((tmp_path / "a b.html").as_uri())
    wait_for(page, "views.map.viewer.isOpen() && views.map.viewer.world.getItemCount() == 2")
    page.evaluate("views.map.viewer.viewport.zoomTo(8, null, true)")
    wait_for(page, "views.map.viewer.world.getItemAt(1).getFullyLoaded()")
    assert any(url.endswith(".jpeg") and "_files/12/" in url for url in answers)
    assert all(url.startswith(("file:", "data:", "blob:")) for url in answers)
    # Both images are in the same place.
    ends = page.evaluate(
        """[0, 1].map(k => views.map.viewer.world.getItemAt(k)).map(
            item => item.viewportToImageCoordinates(0.7, 0.7).x / item.getContentSize().x)"""
    )
    assert_allclose(*ends, atol=2e-3)
    page.close()
    with pytest.raises(FileExistsError, match="a b_files' exists"):
        export_map(tiled, tiles, tmp_path / "a b.html", tiles=True)
    with pytest.raises(ValueError, match="must end in .html"):
        export_map(tiled, tiles, tmp_path / "map.csv", tiles=True)
