"""The order of the gallery: as one works."""

# SPDX-License-Identifier: BSD-3-Clause

ORDER = [
    "plot_quickstart.py",
    "plot_slides.py",
    "plot_other_features.py",
    "plot_gene_embeddings.py",
    "plot_lambda_path.py",
    "plot_aggregators.py",
    "plot_significance.py",
    "plot_calibration.py",
]


class GalleryOrder:
    """
    Key by which Sphinx-Gallery sorts the examples of a folder.

    Parameters
    ----------
    src_dir : str
        The folder.
    """

    def __init__(self, src_dir):
        self.src_dir = src_dir

    def __call__(self, filename):
        """Return the position of an example."""
        return ORDER.index(filename)
