#!/usr/bin/env python3
"""Golden vectors for STCRank, made with numpy, scikit-learn and PyTorch in double: writes stcrank.safetensors beside this script.

    python3 stcrank.py

Label rules sample by sample; dependence by numpy, its phi checked with sklearn's matthews_corrcoef; rates and values of lists with
autograd; plans by trying every ordered selection, without context and with one that tires of what it has seen.
"""
import itertools
import pathlib
import platform

import numpy as np
import sklearn
import torch
from sklearn.metrics import matthews_corrcoef

import safetensors_writer

rng = np.random.default_rng(20260110)
torch.manual_seed(20260110)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
out = {}

# Rules: kind (0 exclude, 1 subtract, 2 absorb, 3 reweight), to, from, alpha, value
n, m = 60, 4
labels = (rng.random((n, m)) < [0.3, 0.5, 0.6, 0.4]).astype(np.float64)
labels[:, 1] = np.where(rng.random(n) < 0.5, labels[:, 0], labels[:, 1])  # they hang together
weights = rng.choice([0.0, 0.5, 1.0, 2.0], size=(n, m), p=[0.15, 0.25, 0.4, 0.2])
rules = np.array([[2, 1, 0, 0, 1], [1, 2, 1, 0, 1], [0, 2, 0, 0, 1], [3, 3, 2, 0.25, 0], [3, 0, 3, 3, 1], [1, 3, 0, 0, 1], [3, 1, 2, 0, 1]])
y, w = labels.copy(), weights.copy()
for i in range(n):
    for kind, to, source, alpha, value in rules:
        to, source = int(to), int(source)
        if weights[i, source] == 0:
            continue
        given = labels[i, source]
        if kind == 0 and given == 1:
            w[i, to] = 0
        if kind == 1 and weights[i, to] > 0:
            y[i, to] *= 1 - given
        if kind == 2 and weights[i, to] > 0:
            y[i, to] = max(y[i, to], given)
        if kind == 3 and given == value:
            w[i, to] *= alpha
out.update({"labels": labels, "weights": weights, "rules": rules.astype(np.float64), "new_labels": y, "new_weights": w})

lift, phi = np.zeros((m, m)), np.zeros((m, m))
for a in range(m):
    for b in range(m):
        both = weights[:, a] * weights[:, b]
        pa, pb, pab = (np.average(x, weights=both) for x in (labels[:, a], labels[:, b], labels[:, a] * labels[:, b]))
        lift[a, b] = pab / (pa * pb)
        phi[a, b] = (pab - pa * pb) / np.sqrt(pa * (1 - pa) * pb * (1 - pb))
        assert abs(phi[a, b] - matthews_corrcoef(labels[:, a], labels[:, b], sample_weight=both)) < 1e-12
out.update({"lift": lift, "phi": phi})

# Rates put together
rates = torch.rand(3, 11, requires_grad=True)
pc, pv, ps = rates
worth = {"conversion": 1.5, "view": 0.4, "swipe": 0.2, "rho": 0.15}
view = pc + (1 - pc) * pv
outcome = torch.stack([view, (1 - pc) * ps + pc * worth["rho"], worth["conversion"] * pc + worth["view"] * view + worth["swipe"] * ps * (1 - pc)])
doutcome = torch.randn(3, 11)
outcome.backward(doutcome)
out.update({"rates": rates.detach().numpy(), "worth": np.array(list(worth.values())), "outcome": outcome.detach().numpy(),
            "doutcome": doutcome.numpy(), "drates": rates.grad.numpy()})

# Values of lists
r, c, tail = torch.randn(9, 6, requires_grad=True), torch.rand(9, 6, requires_grad=True), torch.randn(9, requires_grad=True)
reached = torch.cat([torch.ones(9, 1), torch.cumprod(c, dim=1)], dim=1)
value = (r * reached[:, :-1]).sum(dim=1) + reached[:, -1] * tail
dvalue = torch.randn(9)
value.backward(dvalue)
out.update({"lists.r": r.detach().numpy(), "lists.c": c.detach().numpy(), "lists.tail": tail.detach().numpy(), "lists.value": value.detach().numpy(),
            "lists.dvalue": dvalue.numpy(), "lists.dr": r.grad.numpy(), "lists.dc": c.grad.numpy(), "lists.dtail": tail.grad.numpy()})


# Plans: the best ordered selection of every length; then with r and c of an item times 0.7 and 0.9 for each of its kind before it
def worth_of(shown, r, c, kind, tail):
    total, reached, seen = 0.0, 1.0, [0] * 3
    for i in shown:
        total += reached * r[i] * 0.7 ** (seen[kind[i]] if kind is not None else 0)
        reached *= c[i] * 0.9 ** (seen[kind[i]] if kind is not None else 0)
        seen[kind[i] if kind is not None else 0] += 1
    return total + reached * tail


def best_of(length, r, c, kind, tail):
    return max((worth_of(s, r, c, kind, tail), s) for s in itertools.permutations(range(len(r)), length))


plans, items, slots = 4, 7, 4
r, c = rng.uniform(-0.02, 0.3, (plans, items)), rng.uniform(0.2, 0.98, (plans, items))
kind, tail = rng.integers(0, 3, (plans, items)), np.array([0, 0.2, 0, 0.5])
best = np.array([[best_of(q, r[p], c[p], None, tail[p])[0] for q in range(items + 1)] for p in range(plans)])
plain = [best_of(slots, r[p], c[p], None, tail[p]) for p in range(plans)]
tired = [best_of(slots, r[p], c[p], kind[p], tail[p]) for p in range(plans)]
out.update({"plan.r": r, "plan.c": c, "plan.kind": kind.astype(np.int32), "plan.tail": tail, "plan.best": best,
            "plan.list": np.array([s for _, s in plain], dtype=np.int32), "plan.tired": np.array([v for v, _ in tired]),
            "plan.tired_list": np.array([s for _, s in tired], dtype=np.int32)})

safetensors_writer.write(
    pathlib.Path(__file__).with_suffix(".safetensors"),
    out,
    {"script": "tests/golden/stcrank.py", "python": platform.python_version(), "numpy": np.__version__, "sklearn": sklearn.__version__, "torch": torch.__version__},
)
