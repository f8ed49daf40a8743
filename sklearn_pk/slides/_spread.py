"""The part of the encoding that takes place in the workers of joblib."""

# SPDX-License-Identifier: BSD-3-Clause

import copy
import os
import pickle
import threading
from functools import cache, partial

import numpy as np

from ..utils._parallel import cloudpickle, count_jobs, is_dask
from ._job import EncodingJob
from ._loading import plain_error

# The model of each thread; the last one only, because it may fill a device.
_here = threading.local()


def count_encoders(n_jobs, device):
    """Decide how many workers encode."""
    if n_jobs is None and device != "cpu" and not is_dask():
        return 1
    return count_jobs(n_jobs)


def pack(featurizer):
    """Turn a fitted featurizer into bytes, which joblib sends to each worker once."""
    featurizer = copy.copy(featurizer).set_params(n_jobs=1, errors="raise", verbose=0)
    for name in ("store", "weights"):
        value = getattr(featurizer, name)
        if value is not None:
            setattr(featurizer, name, os.path.abspath(value))
    # Results of earlier calls, with which the bytes would be other ones in each call.
    for name in ("failures_", "throughput_"):
        vars(featurizer).pop(name, None)
    return np.frombuffer(cloudpickle.dumps(featurizer), dtype=np.uint8)


def _unpack(packed, digest):
    """Return the featurizer and the function that loads its model, as they were if known."""
    if getattr(_here, "digest", None) != digest:
        _here.digest = None
        _here.featurizer = featurizer = pickle.loads(packed)
        _here.load = cache(partial(featurizer._load_model, featurizer._pick_device()))
        _here.digest = digest
    return _here.featurizer, _here.load


def encode_slide(packed, digest, slide, position):
    """Encode a slide, in a worker."""
    featurizer, load = _unpack(packed, digest)
    job = EncodingJob(
        {position: slide},
        look_up=featurizer._look_up,
        keep=featurizer._keep,
        batch_size=featurizer.batch_size,
        fail_fast=True,
    )
    job.run(
        load,
        transform=featurizer.encoder_.transform,
        num_workers=featurizer.num_workers,
        device=featurizer._pick_device(),
    )
    if position in job.errors:
        return plain_error(job.errors[position]), job.throughput.summary()
    return job.results[position], job.throughput.summary()
