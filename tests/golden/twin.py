#!/usr/bin/env python3
"""Golden vectors for TWIN, made with PyTorch in double: writes twin.safetensors beside this script.

    python3 twin.py

Written user by user from the formulas of TWIN (arXiv 2302.02352, sections 3.3, 3.4 and 4.3) with autograd; selection by sorting.
"""
import pathlib
import platform

import numpy as np
import torch

import safetensors_writer

torch.manual_seed(20250401)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
heads, key_width, value_width, width, features, e, selected = 2, 3, 2, 5, 2, 4, 4
rows, lengths = [2, 1, 3, 1], [9, 0, 12, 2]
offsets, starts = (np.concatenate([[0], np.cumsum(x)]) for x in (lengths, rows))


def parameter(*shape):
    return torch.randn(*shape, requires_grad=True)


q, inherent, cross, prior = parameter(starts[-1], width), parameter(offsets[-1], width), parameter(offsets[-1], features * e), parameter(offsets[-1])
wq, wk = parameter(heads * key_width, width), parameter(heads * key_width, width)
wv, wo = parameter(heads * value_width, width + features * e), parameter(6, heads * value_width)
w, beta = parameter(heads, features * e), parameter(heads, features)
dy = torch.randn(starts[-1], 6)
y, chosen = [], np.full((starts[-1], selected), -1, np.int32)
for u in range(len(rows)):
    h, x = inherent[offsets[u]:offsets[u + 1]], cross[offsets[u]:offsets[u + 1]]
    bias = torch.stack([sum(beta[a, j] * (x[:, j * e:(j + 1) * e] @ w[a, j * e:(j + 1) * e]) for j in range(features)) for a in range(heads)])
    for n in range(starts[u], starts[u + 1]):
        if lengths[u] == 0:
            y.append(torch.zeros(6))
            continue
        alpha = [(h @ wk[a * key_width:(a + 1) * key_width].T) @ (q[n] @ wq[a * key_width:(a + 1) * key_width].T) / key_width**0.5 +
                 bias[a] + prior[offsets[u]:offsets[u + 1]] for a in range(heads)]
        ranks = [torch.argsort(s, descending=True).tolist() for s in alpha]
        taken = []
        for r in range(lengths[u]):
            for a in range(heads):
                if ranks[a][r] not in taken and len(taken) < selected:
                    taken.append(ranks[a][r])
        chosen[n, :len(taken)] = taken
        values = torch.cat([h, x], 1)[taken]
        parts = [torch.softmax(alpha[a][taken], 0) @ (values @ wv[a * value_width:(a + 1) * value_width].T) for a in range(heads)]
        y.append(torch.cat(parts) @ wo.T)
y = torch.stack(y)
y.backward(dy)
out = {"rows": starts.astype(np.int64), "offsets": offsets.astype(np.int64), "indices": chosen, "y": y.detach().numpy(), "dy": dy.numpy()}
for name, t in {"q": q, "inherent": inherent, "cross": cross, "prior": prior, "wq": wq, "wk": wk, "wv": wv, "wo": wo, "w": w, "beta": beta}.items():
    out[name] = t.detach().numpy()
    out["d" + name] = t.grad.numpy()

safetensors_writer.write(pathlib.Path(__file__).with_suffix(".safetensors"), out,
                         {"torch": torch.__version__, "python": platform.python_version()})
