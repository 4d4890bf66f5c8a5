#!/usr/bin/env python3
"""Golden vectors for selection, made with scipy and numpy: writes selection.safetensors beside this script.

    python3 selection.py
"""
import pathlib
import platform

import numpy as np
import scipy
from scipy.stats import rankdata, tiecorrect

import safetensors_writer

rng = np.random.default_rng(7)
arrays = {
    "normal": rng.normal(size=257),
    "ties": rng.integers(0, 9, size=301) / 4.0,
    "equal": np.full(17, -2.5),
    "one": np.array([3.0]),
    # Infinities of one sign: rankdata takes the sum of both for a NaN.
    "extremes": np.array([np.inf, -3e38, 0.0, -0.0, 1e-40, -1e-40, 0.0, np.inf, -1e30, 1e30, 5.0]),
}
out = {}
for name, x in arrays.items():
    x = x.astype(np.float32)
    ranks = rankdata(x, method="average")
    n = len(x)
    out[f"{name}.x"] = x
    out[f"{name}.midrank"] = ranks.astype(np.float64)
    out[f"{name}.midrank_descending"] = rankdata(-x, method="average").astype(np.float64)
    out[f"{name}.argsort"] = np.argsort(x, kind="stable").astype(np.int32)
    # tiecorrect = 1 - term / (n^3 - n)
    out[f"{name}.term"] = np.array([(1.0 - tiecorrect(ranks)) * (float(n) ** 3 - n)])
safetensors_writer.write(
    pathlib.Path(__file__).with_suffix(".safetensors"),
    out,
    {
        "script": "tests/golden/selection.py",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    },
)
