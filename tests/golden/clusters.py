#!/usr/bin/env python3
"""Golden vectors for TWIN-V2's clusters, made with scipy's k-means (Lloyd from given centroids): writes clusters.safetensors beside it.

    python3 clusters.py

The recursion is written from the paper (arXiv 2407.16357, section 4.2): groups by playing ratio, a queue of sets, max(2, floor(n^0.3))
parts each. Histories are drawn again until no choice is close, so that float and double must agree to the last behaviour.
"""
import math
import pathlib
import platform
import warnings

import numpy as np
import scipy
from scipy.cluster.vq import kmeans2

import safetensors_writer

rng = np.random.default_rng(20240716)
warnings.simplefilter("ignore", UserWarning)  # an empty part is legal: its centroid stays


class TooClose(Exception):
    pass


def require_apart(distances):
    """No row's two smallest numbers are nearly, and not exactly, equal."""
    two = np.sort(distances, axis=1)[:, :2]
    gap = two[:, 1] - two[:, 0]
    if np.any((gap > 0) & (gap < 1e-3 * (1 + two[:, 0]))):
        raise TooClose


def k_means(x, count, iterations):
    centroids, label = x[np.arange(count) * len(x) // count].copy(), None
    for _ in range(iterations):  # what scipy assigns in each round, to see how close it was
        require_apart(((x[:, None, :] - centroids[None]) ** 2).sum(axis=2))
        centroids, label = kmeans2(x, centroids, iter=1, minit="matrix", missing="warn")
    start = x[np.arange(count) * len(x) // count].copy()
    _, whole = kmeans2(x, start, iter=iterations, minit="matrix", missing="warn")
    assert np.array_equal(whole, label)
    return whole


def clusters_of(x, ratio, groups, max_size, exponent, iterations):
    group = np.minimum(groups - 1, np.floor(np.clip(ratio, 0, 1) * groups).astype(int))
    out = []
    for g in range(groups):
        queue = [np.flatnonzero(group == g)]
        while queue:
            members = queue.pop(0)
            if len(members) == 0:
                continue
            if len(members) <= max_size:
                out.append(members)
                continue
            label = k_means(x[members], max(2, math.floor(len(members) ** exponent)), iterations)
            parts = [members[label == k] for k in np.unique(label)]
            if len(parts) > 1:
                queue += parts
                continue
            pieces = -(-len(members) // max_size)
            out += [members[len(members) * i // pieces:len(members) * (i + 1) // pieces] for i in range(pieces)]
    return out


def representative(x, members):
    if len(members) < 3:
        return members[0]  # two are equally far from their mean
    apart = ((x[members] - x[members].mean(axis=0)) ** 2).sum(axis=1)
    require_apart(apart[None])
    return members[np.argmin(apart)]


out = {}
cases = [(300, 6, 5, 20, 0.3, 10), (260, 3, 1, 7, 0.5, 4), (90, 8, 3, 4, 0.3, 1), (23, 1, 2, 1, 0.7, 10)]
for number, (l, d, groups, max_size, exponent, iterations) in enumerate(cases):
    while True:
        x = (rng.normal(size=(l, d)) + 4 * rng.integers(0, 5, size=(l, 1))).astype(np.float32).astype(np.float64)
        x[l // 3:l // 3 + 45:2] = 0.5  # some that nothing tells apart
        ratio = rng.uniform(-0.2, 1.2, size=l).astype(np.float32).astype(np.float64)
        try:
            sets = clusters_of(x, ratio, groups, max_size, exponent, iterations)
            stands = [representative(x, s) for s in sets]
            break
        except TooClose:
            pass
    case = {
        "x": x.astype(np.float32),
        "ratio": ratio.astype(np.float32),
        "options": np.array([groups, max_size, exponent, iterations], dtype=np.float64),
        "offsets": np.concatenate([[0], np.cumsum([len(s) for s in sets])]).astype(np.int32),
        "members": np.concatenate(sets).astype(np.int32),
        "representative": np.array(stands, dtype=np.int32),
        "means": np.stack([x[s].mean(axis=0) for s in sets]),
    }
    out.update({f"{number}.{name}": value for name, value in case.items()})
out["cases"] = np.array([len(cases)], dtype=np.int64)

safetensors_writer.write(
    pathlib.Path(__file__).with_suffix(".safetensors"),
    out,
    {"script": "tests/golden/clusters.py", "python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__},
)
