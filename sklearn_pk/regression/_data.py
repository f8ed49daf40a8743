"""Bags as batches, their statistics, and the patients held out inside a fit."""

# SPDX-License-Identifier: BSD-3-Clause

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from ..utils._bags import read_bag


class BagDataset(torch.utils.data.Dataset):
    """Serve batches of bags, padded to the longest of them."""

    def __init__(self, bags, targets, indices):
        self.bags = bags
        self.targets = targets
        self.indices = indices
        self.reads_files = not all(isinstance(bags[row], np.ndarray) for row in indices)

    def __len__(self):
        """Count the slides."""
        return len(self.indices)

    def __getitem__(self, position):
        """Return one slide as a batch."""
        return self.batch([position])

    def batch(self, positions):
        """Return several slides."""
        rows = self.indices[np.asarray(positions)]
        bags = [present_tiles(self.bags[row], row) for row in rows]
        return pad_bags(bags), torch.from_numpy(self.targets[rows])


class Batches:
    """Go through a data set in batches; those in files are read one batch ahead."""

    def __init__(self, dataset, batch_size, generator=None):
        self.dataset = dataset
        self.batch_size = batch_size
        self.generator = generator

    def __len__(self):
        """Count the batches."""
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self):
        """Yield batches as :meth:`BagDataset.batch` returns them."""
        n_slides = len(self.dataset)
        if self.generator is None:
            order = np.arange(n_slides)
        else:
            order = torch.randperm(n_slides, generator=self.generator).numpy()
        chunks = [
            order[start : start + self.batch_size] for start in range(0, n_slides, self.batch_size)
        ]
        if not self.dataset.reads_files:
            yield from map(self.dataset.batch, chunks)
            return
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(self.dataset.batch, chunks[0])
            for chunk in chunks[1:]:
                batch, coming = coming.result(), reader.submit(self.dataset.batch, chunk)
                yield batch
            yield coming.result()


def present_tiles(bag, position):
    """Return the features of a slide, read and checked if they are in a file."""
    if isinstance(bag, np.ndarray):
        return bag
    return read_bag(bag, position=position, n_features=bag.shape[1])


def pad_bags(bags):
    """Stack bags of any length."""
    lengths = [len(bag) for bag in bags]
    longest = max(lengths)
    if min(lengths) == longest:
        stacked = np.concatenate(bags).astype(np.float32, copy=False)
        return torch.from_numpy(stacked.reshape(len(bags), longest, -1)), None
    padded = np.empty((len(bags), longest, bags[0].shape[1]), dtype=np.float32)
    for row, bag in zip(padded, bags, strict=True):
        row[: len(bag)] = bag
        row[len(bag) :] = 0
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return torch.from_numpy(padded), mask


def tile_statistics(bags, rows):
    """Compute the mean and standard deviation of each feature over all tiles."""
    n_tiles, mean, squares = 0, 0.0, 0.0
    for position, bag in zip(rows, bags, strict=True):
        tiles = present_tiles(bag, position).astype(np.float64)
        # Chan's update: one pass is enough, whatever the offset of a feature is.
        bag_mean = tiles.mean(axis=0)
        tiles -= bag_mean
        shift, total = bag_mean - mean, n_tiles + len(tiles)
        squares = (
            squares
            + np.einsum("td,td->d", tiles, tiles)
            + shift**2 * (n_tiles * len(tiles) / total)
        )
        mean = mean + shift * (len(tiles) / total)
        n_tiles = total
    deviation = np.sqrt(squares / n_tiles)
    constant = deviation <= np.finfo(np.float32).eps * np.maximum(np.abs(mean), 1e-12)
    return mean, np.where(constant, 1.0, deviation)


def split_groups(groups, fraction, random_state):
    """Hold out a share of the patients."""
    patients, codes = np.unique(groups, return_inverse=True)
    n_valid = 0
    if fraction > 0 and len(patients) > 1:
        n_valid = min(max(1, round(fraction * len(patients))), len(patients) - 1)
    held_out = random_state.permutation(len(patients))[:n_valid]
    is_valid = np.isin(codes, held_out)
    return np.flatnonzero(~is_valid), np.flatnonzero(is_valid)
