#!/usr/bin/env python3
"""Golden vectors for msd, ssd and dpp_map, made with numpy alone: writes list_selectors.safetensors beside this script.

    python3 list_selectors.py

msd is written from its definition (the full similarity matrix). ssd is the published residual-matrix algorithm (Huang et al., KDD 2021):
residuals of all candidates are projected step by step, and given back when a direction leaves. dpp_map is the published fast greedy on an
explicit kernel (Chen et al., NeurIPS 2018, algorithm 1); windows and histories are slogdet of every candidate's set.
"""
import pathlib
import platform

import numpy as np

import safetensors_writer

rng = np.random.default_rng(20210814)


def unit(x):
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, length, out=np.zeros_like(x), where=length > 1e-12)


def msd(r, z, zh, free, lam, scale, window, k):
    shown, picks, scores = list(zh), [], []
    while len(picks) < k and free.any():
        last = shown if window == 0 else shown[max(0, len(shown) - (window - 1)):]
        order = score = lam * r
        if last:
            distance = sum(1 - z @ x for x in last)
            c = {0: 1 / len(last), 1: 2 / (k - 1) if k > 1 else 0, 2: 1}[scale]
            order = score = lam * r + (1 - lam) * c * distance
        else:
            order = r
        best = int(np.argmax(np.where(free, order, -np.inf)))
        picks.append(best)
        scores.append(score[best])
        free[best] = False
        shown.append(z[best])
    return picks, scores


def ssd(r, z, zh, free, gamma, window, volume, k):
    """The residual matrix R: what of each row no kept direction explains; `kept` holds (direction, its projections)."""
    residual, kept, picks, scores = z.copy(), [], [], []
    history = list(zh[-window:]) if window else list(zh)  # the last ones that can still be kept

    def push(x):
        nonlocal residual
        u = x.copy()
        for _ in range(2):
            for v, _c in kept:
                u = u - (v @ u) * v
        length = np.linalg.norm(u)
        u = u / length if length > 1e-9 else np.zeros_like(u)
        if window and len(kept) == window:
            v, c = kept.pop(0)
            residual = residual + np.outer(c, v)
        c = residual @ u
        residual = residual - np.outer(c, u)
        kept.append((u, c))

    for x in history:
        push(x)
    v = gamma
    while len(picks) < k and free.any():
        length = np.linalg.norm(residual, axis=1)
        score = r + v * length if kept else r
        best = int(np.argmax(np.where(free, score, -np.inf)))
        picks.append(best)
        scores.append(score[best])
        free[best] = False
        if volume:
            v *= length[best]
        push(z[best])
    return picks, scores


def fast_greedy(kernel, k, eps):
    """Chen et al., algorithm 1."""
    n = len(kernel)
    c, d2 = np.zeros((k, n)), kernel.diagonal().copy()
    picks, gains = [], []
    j = int(np.argmax(d2))
    for t in range(k):
        if d2[j] <= eps * kernel[j, j]:
            break
        picks.append(j)
        gains.append(np.log(d2[j]))
        e = (kernel[j] - c[:t, j] @ c[:t]) / np.sqrt(d2[j])
        c[t] = e
        d2 = d2 - e * e
        d2[j] = -np.inf
        j = int(np.argmax(d2))
    return picks, gains


def by_determinants(kernel, m, window, k):
    """Rows 0 .. m - 1 are history."""
    shown, picks, gains = list(range(m)), [], []

    def log_det(s):
        return np.linalg.slogdet(kernel[np.ix_(s, s)])[1] if s else 0.0

    while len(picks) < k:
        s = shown if window == 0 else shown[max(0, len(shown) - (window - 1)):]
        base = log_det(s)
        gain = np.array([-np.inf if i in picks else log_det(s + [m + i]) - base for i in range(len(kernel) - m)])
        best = int(np.argmax(gain))
        picks.append(best)
        gains.append(gain[best])
        shown.append(m + best)
    return picks, gains


out = {}


def store(prefix, number, relevance, x, history, allowed, options, picks, scores):
    case = {"relevance": relevance, "features": x, "history": history, "allowed": allowed, "options": np.array(options, dtype=np.float64)}
    case["picks"], case["scores"] = np.array(picks, dtype=np.int32), np.array(scores)
    out.update({f"{prefix}.{number}.{name}": value for name, value in case.items()})


def candidates(n, d, m, mask):
    allowed = (rng.random(n) < 0.8) if mask else np.ones(n, dtype=bool)
    return rng.random(n), rng.normal(size=(n, d)), rng.normal(size=(m, d)), allowed


cases = [(50, 8, 0, 12, 0.5, 0, 0, 1, 0), (70, 16, 3, 20, 0.3, 1, 0, 1, 1), (40, 5, 0, 15, 0.7, 2, 0, 0, 0), (60, 7, 2, 20, 0.5, 0, 4, 1, 1)]
for number, (n, d, m, k, lam, scale, window, normalize, mask) in enumerate(cases):
    r, x, h, allowed = candidates(n, d, m, mask)
    z, zh = (unit(x), unit(h)) if normalize else (x, h)
    store("msd", number, r, x, h, allowed.astype(np.uint8), [lam, scale, window, normalize], *msd(r, z, zh, allowed.copy(), lam, scale, window, k))
out["msd.cases"] = np.array([len(cases)], dtype=np.int64)

cases = [(50, 8, 0, 12, 1.0, 0, 0, 1, 0), (70, 6, 0, 30, 0.5, 3, 0, 1, 1), (60, 9, 2, 25, 0.4, 4, 1, 0, 0), (65, 16, 6, 20, 2.0, 4, 0, 1, 1), (30, 4, 0, 10, 0.5, 0, 1, 0, 0)]
for number, (n, d, m, k, gamma, window, volume, normalize, mask) in enumerate(cases):
    r, x, h, allowed = candidates(n, d, m, mask)
    z, zh = (unit(x), unit(h)) if normalize else (x, h)
    store("ssd", number, r, x, h, allowed.astype(np.uint8), [gamma, window, volume, normalize], *ssd(r, z, zh, allowed.copy(), gamma, window, volume, k))
out["ssd.cases"] = np.array([len(cases)], dtype=np.int64)

cases = [(60, 16, 0, 14, 0, 1.0, 1), (90, 6, 0, 10, 0, 1.0, 1), (40, 5, 0, 20, 0, 0.8, 0), (50, 8, 0, 30, 4, 1.0, 1), (45, 9, 3, 5, 0, 1.0, 0), (40, 7, 4, 25, 5, 0.9, 1)]
for number, (n, d, m, k, window, alpha, normalize) in enumerate(cases):
    _, x, h, allowed = candidates(n, d, m, 0)
    q = np.exp(0.5 * rng.normal(size=n))
    z = np.concatenate([h, x])
    z = (unit(z) if normalize else z) * np.concatenate([np.ones(m), q])[:, None]
    kernel = alpha * (z @ z.T)
    np.fill_diagonal(kernel, (z * z).sum(axis=1))
    picks, gains = fast_greedy(kernel, k, 1e-10) if window == 0 and m == 0 else by_determinants(kernel, m, window, k)
    store("dpp", number, q, x, h, allowed.astype(np.uint8), [k, window, alpha, normalize], picks, gains)
out["dpp.cases"] = np.array([len(cases)], dtype=np.int64)

safetensors_writer.write(
    pathlib.Path(__file__).with_suffix(".safetensors"),
    out,
    {"script": "tests/golden/list_selectors.py", "python": platform.python_version(), "numpy": np.__version__},
)
