#!/usr/bin/env python3
"""Golden vectors for soft ranks, soft sort and the rank-sum AUC loss: writes soft_rank.safetensors beside this script.

    python3 soft_rank.py

Quadratic projections from scikit-learn's isotonic regression, entropic ones from scipy's minimiser over cumulated steps, hard
ranks from scipy, AUCs from scikit-learn. Gradients are central differences of those.
"""
import pathlib
import platform

import numpy as np
import scipy
import scipy.optimize
import scipy.stats
import sklearn
import sklearn.isotonic
import sklearn.metrics

import safetensors_writer

rng = np.random.default_rng(9)
out = {}


def isotonic(y):
    return sklearn.isotonic.isotonic_regression(y, increasing=False)


def isotonic_kl(s, w):
    """argmin <exp(s - v), 1> + <exp(w), v> over v_1 >= ... >= v_n, as a start and steps that are not positive."""
    n = len(s)

    def value(z):
        v = np.cumsum(z)
        e = np.exp(s - v)
        g = np.exp(w) - e
        return e.sum() + np.exp(w) @ v, np.cumsum(g[::-1])[::-1].copy()

    start = np.concatenate([[np.max(s - w)], np.full(n - 1, -1e-3)])
    best = scipy.optimize.minimize(
        value, start, jac=True, method="L-BFGS-B", bounds=[(None, None)] + [(None, 0)] * (n - 1),
        options={"maxiter": 100000, "maxfun": 100000, "ftol": 1e-17, "gtol": 1e-12, "maxcor": 50},
    )
    return np.cumsum(best.x)


def soft_rank(theta, eps, kl=False):
    n, order = len(theta), np.argsort(-theta, kind="stable")
    s, rho = theta[order] / eps, np.arange(n, 0, -1.0)
    ranks = np.exp(s - isotonic_kl(s, np.log(rho))) if kl else s - isotonic(s - rho)
    result = np.empty(n)
    result[order] = ranks
    return result


def soft_sort(theta, eps):
    n = len(theta)
    rho = np.arange(n, 0, -1.0) / eps
    return rho - isotonic(rho - np.sort(theta)[::-1])


def gradient(f, theta, u, h=1e-6):
    g = np.empty_like(theta)
    for i in range(len(theta)):
        up, down = theta.copy(), theta.copy()
        up[i] += h
        down[i] -= h
        g[i] = (f(up) - f(down)) @ u / (2 * h)
    return g


sizes = [1, 2, 7, 40, 5, 90]
out["offsets"] = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
n = int(out["offsets"][-1])
out["theta"] = rng.normal(size=n)
out["u"] = rng.normal(size=n)
parts = [slice(a, b) for a, b in zip(out["offsets"][:-1], out["offsets"][1:])]
for name, eps in [("small", 0.02), ("middle", 0.1), ("large", 1.0)]:
    out[f"eps.{name}"] = np.array([eps])
    out[f"rank.{name}"] = np.concatenate([soft_rank(out["theta"][p], eps) for p in parts])
    out[f"drank.{name}"] = np.concatenate([gradient(lambda t: soft_rank(t, eps), out["theta"][p], out["u"][p]) for p in parts])
for name, eps in [("small", 1.0), ("middle", 10.0), ("large", 200.0)]:
    out[f"sort_eps.{name}"] = np.array([eps])
    out[f"sort.{name}"] = np.concatenate([soft_sort(out["theta"][p], eps) for p in parts])
    out[f"dsort.{name}"] = np.concatenate([gradient(lambda t: soft_sort(t, eps), out["theta"][p], out["u"][p]) for p in parts])

theta = rng.normal(size=9)
out |= {"kl.theta": theta, "kl.eps": np.array([0.7]), "kl.rank": soft_rank(theta, 0.7, kl=True)}

# Three objectives of one score with ties: with hard ranks the loss is 1 - AUC.
scores = np.round(rng.normal(size=60), 1)
labels = (rng.random((60, 3)) < [0.5, 0.2, 0.05]).astype(np.uint8)
labels[0], labels[1] = 1, 0
out |= {"auc.scores": scores, "auc.labels": labels, "auc.midranks": scipy.stats.rankdata(scores)}
out["auc.values"] = np.array([sklearn.metrics.roc_auc_score(labels[:, m], scores) for m in range(3)])

metadata = {
    "script": "tests/golden/soft_rank.py",
    "python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__, "scikit-learn": sklearn.__version__,
}
safetensors_writer.write(pathlib.Path(__file__).with_suffix(".safetensors"), out, metadata)
