"""Shared by the suites: one step, done by the library and by a plain reference."""

# SPDX-License-Identifier: BSD-3-Clause

from abc import ABC, abstractmethod

from _common import run_in_turns

WAYS = ["ours", "reference"]


class Comparison(ABC):
    """
    A step of the library and a plain reference on the same data.

    Sizes are class attributes. asv takes no abstract class for a suite.

    Attributes
    ----------
    step : str
        What is timed.
    size : str
        Size of the data, for the table.
    tolerance : float
        The largest difference of both results that rounding or the method allows.
    folder : tempfile.TemporaryDirectory or None
        Where files are written.
    n_rounds : int
        Rounds in which `track_ratio` times both.
    """

    step = ""
    tolerance = 0.0
    folder = None
    n_rounds = 3

    # asv sets up anew for each sample, and setting up runs both ways once, which warms up.
    repeat = 1
    number = 3
    warmup_time = 0.0

    @property
    @abstractmethod
    def size(self):
        """Describe the data."""

    @abstractmethod
    def prepare(self):
        """Make the data."""

    @abstractmethod
    def ours(self):
        """Do the step with the library."""

    @abstractmethod
    def reference(self):
        """Do the step with the reference."""

    @abstractmethod
    def difference(self, ours, reference):
        """Measure the difference of both results; 0.0 if they are equal."""

    def compare(self):
        """Do the step in both ways and return the difference of the results."""
        return float(self.difference(self.ours(), self.reference()))

    def setup(self, way=None):
        """Make the data and check that both ways agree on them."""
        self.prepare()
        difference = self.compare()
        if not difference <= self.tolerance:  # NaN disagrees
            self.teardown(way)  # which asv leaves out then
            raise AssertionError(
                f"{self.step}: the library and its reference differ by {difference:.3g}, more than "
                f"{self.tolerance:.3g}"
            )

    def teardown(self, way=None):
        """Remove what was written."""
        if self.folder is not None:
            self.folder.cleanup()

    def measure(self, n_rounds):
        """Return the seconds of each way, run in turns."""
        return run_in_turns({way: getattr(self, way) for way in WAYS}, n_rounds)[1]

    def time_step(self, way):
        """Time one way."""
        getattr(self, way)()

    time_step.params = WAYS
    time_step.param_names = ["way"]

    def track_ratio(self):
        """Compare the fastest of both."""
        seconds = self.measure(self.n_rounds)
        return min(seconds["reference"]) / min(seconds["ours"])

    track_ratio.unit = "times as fast as the reference"
