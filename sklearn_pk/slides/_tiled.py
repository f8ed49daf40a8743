"""TiledSlide: a slide file and the places of its tiles."""

# SPDX-License-Identifier: BSD-3-Clause

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ._inputs import check_coords
from ._wsi._reader import fingerprint, open_slide, read_tile


@dataclass(frozen=True, eq=False, repr=False)
class TiledSlide:
    """
    A slide file and the places of its tiles.

    No pixel is held: :meth:`iter_tiles` opens the file and reads, so the object is
    small and can be pickled.

    Parameters
    ----------
    path : str
        Path of the slide file.
    coords : ndarray of shape (n, 2), int64, default=()
        Upper left corner (x, y) of each tile, in level-0 pixels.
    tile_size : int, default=0
        Edge in pixels of the tiles that :meth:`iter_tiles` gives.
    mpp : float, default=nan
        Resolution that was asked for, in um/px.
    slide_mpp : float, default=nan
        Resolution of level 0, in um/px.
    slide_size : tuple of int, default=(0, 0)
        Width and height of level 0 in pixels.
    objective_power : float, default=nan
        Magnification the file states for level 0, NaN where it states none. Only
        passed on to the feature store; nothing is computed from it.
    level : int, default=0
        Pyramid level that is read.
    level_downsample : float, default=1.0
        Level-0 pixels per pixel of that level.
    read_size : int, default=0
        Edge in pixels that is read at that level, then resampled to `tile_size`.
    size_level0 : int, default=0
        Edge of a tile in level-0 pixels.
    tile_edge_um : float, default=nan
        Edge of a tile that is really read, in um.
    params : tuple, default=()
        Pairs of name and value that say how the slide was tiled.
    reason : str, default=""
        Why there is no tile; empty where there are tiles.
    reader : {"auto", "openslide", "tifffile"}, default="auto"
        Library that reads the slide. SlideTiler notes the one that it found.
    content : str, default=""
        What identifies the content of the file that was tiled. Where it is not empty, another
        file under the same name is refused.

    See Also
    --------
    SlideTiler : Makes tiled slides.
    FeatureBag : What an encoder makes of one.

    Examples
    --------
    >>> from sklearn_pk.datasets import load_cmu_slide
    >>> from sklearn_pk.slides import SlideTiler
    >>> [slide] = SlideTiler().fit_transform([load_cmu_slide().path])
    >>> slide.name, next(slide.iter_tiles()).shape
    ('cmu_small_region', (256, 256, 3))
    """

    path: str
    coords: np.ndarray = ()
    tile_size: int = 0
    mpp: float = np.nan
    slide_mpp: float = np.nan
    slide_size: tuple = (0, 0)
    objective_power: float = np.nan
    level: int = 0
    level_downsample: float = 1.0
    read_size: int = 0
    size_level0: int = 0
    tile_edge_um: float = np.nan
    params: tuple = ()
    reason: str = ""
    reader: str = "auto"
    content: str = ""

    def __post_init__(self):
        """Check the coordinates."""
        object.__setattr__(self, "path", str(self.path))
        object.__setattr__(self, "coords", check_coords(self.coords, self.path))

    @property
    def name(self):
        """Name of the slide: its file name without the ending."""
        return Path(self.path).stem

    def __len__(self):
        """Count the tiles."""
        return len(self.coords)

    def __repr__(self):
        """Name the slide, and count its tiles."""
        known = [f"path={self.path!r}", f"n_tiles={len(self)}"]
        known += [f"{name}={getattr(self, name)!r}" for name in ("tile_size", "mpp")]
        known += [f"reason={self.reason!r}"] if self.reason else []
        return f"TiledSlide({', '.join(known)})"

    def check_content(self):
        """
        Check that the file is still the one that was tiled.

        Raises
        ------
        FileNotFoundError, PermissionError
            If the file cannot be opened.
        ValueError
            If its content is another one.
        """
        if self.content and fingerprint(self.path) != self.content:
            raise ValueError(
                f"Slide {self.path!r} is not the file that was tiled: its content has changed "
                "since. Tile it again."
            )

    def iter_tiles(self):
        """
        Read the tiles one by one.

        Yields
        ------
        tile : ndarray of shape (tile_size, tile_size, 3), uint8
            RGB pixels, transparent ones on white.

        Raises
        ------
        FileNotFoundError, PermissionError, ValueError
            If the slide cannot be read; it is named.
        """
        if not len(self):
            return
        with self.open_tiles() as read:
            for position in range(len(self)):
                yield read(position, position + 1)[0]

    @contextmanager
    def open_tiles(self):
        """
        Open the slide to read some of its tiles.

        Yields
        ------
        read : callable
            Function of (start, stop) that returns the tiles of these positions as an array of
            shape (stop - start, tile_size, tile_size, 3), uint8.

        Raises
        ------
        FileNotFoundError, PermissionError, ValueError
            If the slide cannot be opened, or, within the block, read; it is named.
        """
        with open_slide(self.path, self.reader) as slide:

            def read(start, stop):
                corners = self.coords[start:stop].tolist()
                tiles = np.empty((len(corners), self.tile_size, self.tile_size, 3), dtype=np.uint8)
                for tile, (x, y) in zip(tiles, corners, strict=True):
                    tile[:] = read_tile(slide, x, y, self.level, self.read_size, self.tile_size)
                return tiles

            yield read
