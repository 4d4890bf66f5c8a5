#!/usr/bin/env python3
"""Golden vectors for MMR, made with numpy from the definition (the full similarity matrix, one loop per pick): writes
mmr.safetensors beside this script.

    python3 mmr.py

Every case_N holds the inputs (empty: not given), the options [lambda, window, normalize, weights of features, similarity, categories] and
the picks and scores that follow; window 0 means that all count.
"""
import pathlib
import platform

import numpy as np

import safetensors_writer

rng = np.random.default_rng(19980824)


def unit(x):
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, length, out=np.zeros_like(x), where=length > 1e-12)


def mmr(relevance, sim, sim_history, allowed, lam, window, k):
    """sim [N, N] and sim_history [m, N]: row j holds the similarities of all items to what stands at j."""
    shown = list(sim_history)
    free = allowed.copy()
    picks, scores = [], []
    while len(picks) < k and free.any():
        last = shown if window == 0 else shown[max(0, len(shown) - (window - 1)):]
        if last:
            score = lam * relevance - (1 - lam) * np.max(last, axis=0)
            order = score
        else:
            score = lam * relevance
            order = relevance
        best = int(np.argmax(np.where(free, order, -np.inf)))  # the first of the largest
        picks.append(best)
        scores.append(score[best])
        free[best] = False
        shown.append(sim[best])
    return np.array(picks, dtype=np.int32), np.array(scores)


out = {}
cases = [
    # n, d, m, k, lambda, window, normalize, mask, similarity, categories
    (50, 8, 0, 12, 0.5, 0, 1, 0, 0, 0),
    (70, 16, 4, 20, 0.3, 0, 1, 1, 0, 0),
    (65, 5, 0, 65, 0.7, 0, 0, 0, 0, 0),
    (90, 12, 3, 30, 0.5, 5, 1, 1, 0, 0),
    (40, 0, 2, 10, 0.6, 0, 0, 0, 1, 0),
    (60, 7, 3, 25, 0.4, 4, 0, 1, 1, 1),
    (130, 33, 2, 15, 0.8, 0, 1, 0, 0, 1),
    (33, 0, 0, 20, 0.5, 3, 0, 0, 0, 1),
]
for number, (n, d, m, k, lam, window, normalize, mask, given, categories) in enumerate(cases):
    weights = (0.75, 0.5, 0.25) if given and categories else (1.0, 1.0, 0.5)
    case = {name: np.zeros((0, 0)) for name in ("features", "history", "similarity", "history_similarity")}
    case |= {name: np.zeros(0, dtype=np.int32) for name in ("categories", "history_categories")}
    case["allowed"] = np.zeros(0, dtype=np.uint8)
    case |= {"options": np.array([lam, window, normalize, *weights], dtype=np.float64)}
    case["relevance"] = rng.random(n)
    sim, sim_history = np.zeros((n, n)), np.zeros((m, n))
    if d:
        case["features"] = rng.normal(size=(n, d))
        x = case["features"]
        if number == 1:
            x[7] = 0
        history = rng.normal(size=(m, d))
        if m:
            case["history"] = history
        z, zh = (unit(x), unit(history)) if normalize else (x, history)
        sim += weights[0] * (z @ z.T)
        sim_history += weights[0] * (zh @ z.T)
    if given:
        case["similarity"] = rng.random((n, n))
        sim += weights[1] * case["similarity"]
        if m:
            case["history_similarity"] = rng.random((m, n))
            sim_history += weights[1] * case["history_similarity"]
    if categories:
        case["categories"] = rng.integers(-1, 6, size=n).astype(np.int32)
        c = case["categories"]
        sim += weights[2] * ((c[:, None] == c[None, :]) & (c[:, None] >= 0))
        if m:
            case["history_categories"] = rng.integers(-1, 6, size=m).astype(np.int32)
            ch = case["history_categories"]
            sim_history += weights[2] * ((ch[:, None] == c[None, :]) & (ch[:, None] >= 0))
    allowed = np.ones(n, dtype=bool)
    if mask:
        allowed = rng.random(n) < 0.7
        case["allowed"] = allowed.astype(np.uint8)
    case["picks"], case["scores"] = mmr(case["relevance"], sim, sim_history, allowed, lam, window, k)
    out |= {f"case_{number}.{name}": value for name, value in case.items()}

out["cases"] = np.array([len(cases)], dtype=np.int64)
safetensors_writer.write(
    pathlib.Path(__file__).with_suffix(".safetensors"),
    out,
    {"script": "tests/golden/mmr.py", "python": platform.python_version(), "numpy": np.__version__},
)
