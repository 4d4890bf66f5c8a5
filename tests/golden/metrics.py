#!/usr/bin/env python3
"""Golden vectors for metrics, made with scikit-learn, scipy and numpy: writes metrics.safetensors beside this script.

    python3 metrics.py
"""
import pathlib
import platform

import numpy as np
import scipy
import scipy.spatial.distance
import scipy.stats
import sklearn
import sklearn.calibration
import sklearn.metrics

import safetensors_writer

rng = np.random.default_rng(20240607)
out = {}

# Groups of many sizes with tied scores: AUC, weighted AUC, GAUC.
sizes = np.array([40, 3, 17, 1, 64, 5, 130, 2, 28, 9])
offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
n = int(offsets[-1])
scores = np.round(rng.normal(size=n), 1)
labels = (rng.random(n) < 0.35).astype(np.uint8)
weights = rng.integers(1, 9, size=n) / 4.0
out |= {"offsets": offsets, "scores": scores, "labels": labels, "weights": weights}
out["auc"] = np.array([sklearn.metrics.roc_auc_score(labels, scores)])
out["auc_weighted"] = np.array([sklearn.metrics.roc_auc_score(labels, scores, sample_weight=weights)])
per_group, impressions, clicks = [], [], []
for begin, end in zip(offsets[:-1], offsets[1:]):
    y = labels[begin:end]
    if 0 < y.sum() < len(y):
        per_group.append(sklearn.metrics.roc_auc_score(y, scores[begin:end]))
        impressions.append(end - begin)
        clicks.append(y.sum())
out["gauc"] = np.array(
    [np.average(per_group, weights=impressions), np.average(per_group, weights=clicks), np.mean(per_group), len(per_group)]
)

# NDCG with linear gain on tied scores (scikit-learn averages over ties), one value per k; graded gains through 2^rel - 1.
relevance = rng.integers(0, 5, size=n).astype(np.float64)
out["relevance"] = relevance
ks = [1, 3, 10, 50]
linear, exp2, first_group = [], [], slice(0, 40)
for k in ks:
    linear.append(sklearn.metrics.ndcg_score([relevance[first_group]], [scores[first_group]], k=k))
    exp2.append(sklearn.metrics.ndcg_score([2 ** relevance[first_group] - 1], [scores[first_group]], k=k))
out |= {"ndcg_k": np.array(ks, dtype=np.int64), "ndcg_linear": np.array(linear), "ndcg_exp2": np.array(exp2)}

# Retrieval on scores without ties: MAP over the whole list (average_precision_score), MRR of one positive
# (label_ranking_average_precision_score), hits at k (top_k_accuracy_score).
distinct = rng.permutation(n).astype(np.float64)
out["distinct"] = distinct
out["map"] = np.array([sklearn.metrics.average_precision_score(labels, distinct)])
users, items = 30, 20
grid = rng.permutation(users * items).reshape(users, items).astype(np.float64)
target = rng.integers(0, items, size=users)
one_hot = np.eye(items, dtype=np.uint8)[target]
out |= {"grid_scores": grid, "grid_labels": one_hot}
out["grid_mrr"] = np.array([sklearn.metrics.label_ranking_average_precision_score(one_hot, grid)])
out["grid_hits"] = np.array(
    [sklearn.metrics.top_k_accuracy_score(target, grid, k=k, labels=np.arange(items)) for k in (1, 5, 10)]
)

# Log loss and calibration.
probabilities = rng.beta(1, 6, size=n)
out["probabilities"] = probabilities
out["log_loss"] = np.array([sklearn.metrics.log_loss(labels, probabilities, labels=[0, 1])])
out["log_loss_weighted"] = np.array([sklearn.metrics.log_loss(labels, probabilities, labels=[0, 1], sample_weight=weights)])
rate = labels.mean()
out["normalised_entropy"] = out["log_loss"] / scipy.stats.entropy([rate, 1 - rate])
out["pcoc"] = np.array([probabilities.sum() / labels.sum()])
bins = 10
true, predicted = sklearn.calibration.calibration_curve(labels, probabilities, n_bins=bins, strategy="uniform")
counts = np.histogram(probabilities, bins=np.linspace(0, 1, bins + 1))[0]
counts = counts[counts > 0]
out["ece"] = np.array([np.sum(counts / n * np.abs(true - predicted)), np.max(np.abs(true - predicted))])

# Diversity and exposure.
features = rng.normal(size=(12, 5))
out["features"] = features
cosine = scipy.spatial.distance.pdist(features, "cosine")
out["ild"] = np.array([cosine.mean(), cosine.min()])
exposure = rng.integers(0, 40, size=25)
out["shown"] = np.repeat(np.arange(25), exposure).astype(np.int64)
x = np.sort(exposure)
out["exposure"] = np.array(
    [
        np.mean(exposure > 0),
        scipy.stats.entropy(exposure),
        np.abs(x[:, None] - x[None, :]).mean() / (2 * x.mean()),
    ]
)

safetensors_writer.write(
    pathlib.Path(__file__).with_suffix(".safetensors"),
    out,
    {
        "script": "tests/golden/metrics.py",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "scikit-learn": sklearn.__version__,
    },
)
