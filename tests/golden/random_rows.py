#!/usr/bin/env python3
"""Golden vectors for random numbers: writes random_rows.safetensors beside this script.

    python3 random_rows.py

Words, uniforms and normals by philox.py; masks, draws and orders in Python's integers; moments by numpy and the Kolmogorov-Smirnov
statistic by scipy.
"""
import pathlib
import platform

import numpy as np
import scipy
import scipy.stats

import safetensors_writer
from philox import box_muller, uniforms32, uniforms64, words


def draw(w, i, bound):
    return (w[2 * i] << 32 | w[2 * i + 1]) * bound >> 64


out = {}
ROWS = [(1, 7, 3, 0, 0), (0, 0, 0, 0, 0), (0x0123456789ABCDEF, 0xFEDCBA987654, 0xFFFFFFFF, 15, 4095), (2**64 - 1, 2**32, 10, 3, 1)]
out["rows"] = np.array([[s - 2**64 if s >= 2**63 else s, r, t, p, m] for s, r, t, p, m in ROWS], dtype=np.int64)
W = [words(at, 140) for at in ROWS]
out["words"] = np.array(W, dtype=np.int64)
out["uniform32"] = np.array([uniforms32(w) for w in W]).astype(np.float32)
out["uniform64"] = np.array([uniforms64(w) for w in W])
out["normal32"] = np.array([box_muller(uniforms32(w)) for w in W])
out["normal64"] = np.array([box_muller(uniforms64(w)) for w in W])
assert np.array_equal(out["uniform32"].astype(np.float64), np.array([uniforms32(w) for w in W]))  # floats hold them exactly

KEEP = [0.0, 1e-3, 0.3, 0.5, 0.9, 1.0]
out["keep_probability"] = np.array(KEEP)
out["keep"] = np.array([[x < int(p * 2**32 + 0.5) for x in W[0]] for p in KEEP]).astype(np.uint8)
BOUNDS = [1, 2, 7, 1000, 2**31 - 1]
out["bounds"] = np.array(BOUNDS, dtype=np.int64)
out["below"] = np.array([[draw(W[0], i, n) for i in range(70)] for n in BOUNDS], dtype=np.int64)
for n in (1, 2, 33, 1500):
    w, order = words(ROWS[0], 2 * n), list(range(n))
    for i in range(n):
        j = draw(w, i, i + 1)
        order[i], order[j] = order[j], order[i]
    out["order.%d" % n] = np.array(order, dtype=np.int64)

# A long row: what its numbers look like as a sample.
at = (20240608, 5, 1, 1, 0)
w = words(at, 100000)
for name, u in (("32", uniforms32(w)), ("64", uniforms64(w))):
    z = box_muller(u)
    ks = scipy.stats.kstest(z, "norm")
    out["sample%s" % name] = np.array([np.mean(z), np.mean(z**2), np.mean(z**3), np.mean(z**4), ks.statistic, ks.pvalue,
                                       scipy.stats.kstest(u, "uniform").statistic])
    print(name, out["sample%s" % name])
    assert ks.pvalue > 0.01

safetensors_writer.write(pathlib.Path(__file__).with_suffix(".safetensors"), out,
                         {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__})
