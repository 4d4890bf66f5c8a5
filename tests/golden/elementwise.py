#!/usr/bin/env python3
"""Golden vectors for the elementwise functions, softmax and log-sum-exp, made with scipy.special in double: writes
elementwise.safetensors beside this script. Arguments are floats, so that one file serves float and double.

    python3 elementwise.py
"""
import pathlib
import platform

import numpy as np
import scipy
from scipy import special

import safetensors_writer

rng = np.random.default_rng(20261123)
infinity, nan = np.inf, np.nan
edges = [0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, -1.1754944e-38, 1e-20, -1e-20, 1e-7, -1e-7, 0.5, -0.5, 1.0, -1.0, 3.0, -3.0,
         20.0, -20.0, 88.0, -87.0, infinity, -infinity, nan]
x = np.concatenate([edges, rng.normal(size=60) * 3, rng.uniform(-1, 1, 40) * 10.0 ** rng.integers(-6, 1, 40)]).astype(np.float32)
positive = np.concatenate([[0.0, -0.0, -1.0, 1e-45, 1.1754944e-38, 1.0, 0.99999994, 1.0000001, 3.4028235e38, infinity, nan],
                           10.0 ** rng.uniform(-38, 38, 50), rng.uniform(0.5, 2, 30)]).astype(np.float32)
above = np.concatenate([[0.0, -0.0, -1.0, -2.0, -0.99999994, 1e-45, -1e-45, 1e-8, 3.4028235e38, infinity, nan],
                        rng.uniform(-1, 3, 60), 10.0 ** rng.uniform(-30, 30, 20)]).astype(np.float32)
angles = np.concatenate([[0.0, -0.0, 1e-45, infinity, -infinity, nan, 3.1415927, 1.5707964, 1e5, -3e7, 1e30],
                         rng.uniform(-20, 20, 60), rng.uniform(-1, 1, 20) * 11000]).astype(np.float32)

wide = x.astype(np.float64)
out = {"x": x, "positive": positive, "above": above, "angles": angles}
with np.errstate(all="ignore"):
    out |= {
        "exp": np.exp(wide),
        "sigmoid": special.expit(wide),
        "tanh": np.tanh(wide),
        "silu": np.where(wide == -infinity, 0.0, wide * special.expit(wide)),
        "softplus": np.logaddexp(0.0, wide),
        "erf": special.erf(wide),
        # With erfcx: special.ndtr loses digits far below 0.
        "gelu": np.where(wide < 0, np.where(wide == -infinity, 0.0,
                                            wide * 0.5 * np.exp(-wide * wide / 2) * special.erfcx(-wide * 0.5 ** 0.5)),
                         wide * special.ndtr(wide)),
        "log": np.log(positive.astype(np.float64)),
        "log1p": special.log1p(above.astype(np.float64)),
        "sin": np.sin(angles.astype(np.float64)),
        "cos": np.cos(angles.astype(np.float64)),
    }

# Rows of a softmax: ordinary, padded on either side, one entry far above the others (within e^20 and beyond), large, flat.
n = 75
rows = rng.normal(size=(10, n)) * np.array([3, 3, 20, 20, 1, 1, 1, 1, 1, 1])[:, None]
rows[4, : n // 2] = -infinity
rows[5, n // 3:] = -1e9
rows[6, 5] = 17.0
rows[7, 5] = 300.0
rows[8] += 4000.0
rows[9] = -2.5
rows = rows.astype(np.float32)
out |= {"rows": rows, "softmax": special.softmax(rows.astype(np.float64), axis=1),
        "log_sum_exp": special.logsumexp(rows.astype(np.float64), axis=1)}

safetensors_writer.write(
    pathlib.Path(__file__).with_suffix(".safetensors"),
    out,
    {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__},
)
