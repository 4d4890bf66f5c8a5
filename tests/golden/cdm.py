#!/usr/bin/env python3
"""Golden vectors for CDM, made with PyTorch in double from the formulas (the full score matrix, autograd, the choice of the pool straight
through): writes cdm.safetensors beside this script.

    python3 cdm.py

`attention` is the contrastive attention alone, with weights; `relaxed` the relaxed choice; `labels` the teacher's labels; `model` two
requests through the whole model, with the loss and all gradients.
"""
import pathlib
import platform

import numpy as np
import torch
import torch.nn.functional as F

import safetensors_writer

torch.manual_seed(20240611)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
out = {}


def keep(prefix, **tensors):
    for name, value in tensors.items():
        array = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        out[f"{prefix}.{name}"] = np.atleast_1d(array).copy()


def contrast(q, k, v, own, w, scale):
    s = scale * q @ k.T
    hidden = own[:, None] == torch.arange(len(k))[None, :]
    both = []
    for sign in (1, -1):
        a = torch.softmax((sign * s + torch.log(w)).masked_fill(hidden, -torch.inf), 1)
        both.append(torch.nan_to_num(a) @ v if len(k) == 1 else a @ v)
    return both


def relaxed(key, k, t):
    alpha, w = key, 0
    for _ in range(k):
        p = torch.softmax(alpha / t, 0)
        w = w + p
        alpha = alpha + torch.log1p(-torch.clamp(p, max=1 - 1e-6))
    return w


# The attention alone.
q, k, v = (torch.randn(n, d, requires_grad=True) for n, d in ((13, 5), (7, 5), (7, 3)))
own = torch.tensor([0, -1, 3, -1, -1, 6, 2, -1, -1, 1, -1, 4, 5])
w = (torch.rand(7) * 2).requires_grad_()
dp, dn = torch.randn(13, 3), torch.randn(13, 3)
p, n = contrast(q, k, v, own, w, 0.7)
((p * dp).sum() + (n * dn).sum()).backward()
keep("attention", q=q, k=k, v=v, self=own.to(torch.int32), w=w, dp=dp, dn=dn, p=p, n=n, dq=q.grad, dk=k.grad, dv=v.grad, dw=w.grad)

# The relaxed choice.
key = torch.randn(11, requires_grad=True)
dw = torch.randn(11)
w = relaxed(key, 4, 0.6)
(w * dw).sum().backward()
keep("relaxed", keys=key, dw=dw, w=w, dkeys=key.grad)

# Soft labels along the greedy path.
n, d, k, lam, temperature = 24, 4, 6, 0.6, 0.1
x = F.normalize(torch.randn(n, d), dim=1).numpy()
r = torch.rand(n).numpy()
free, most, y, left = np.ones(n, bool), np.full(n, -np.inf), np.zeros(n), np.ones(n)
for t in range(k):
    score = r.copy() if t == 0 else lam * r - (1 - lam) * most
    e = np.where(free, np.exp((score - score[free].max()) / temperature), 0)
    pi = e / e.sum()
    left = np.where(free, left * (1 - pi), left)
    j = int(np.argmax(np.where(free, score, -np.inf)))
    free[j] = False
    most = np.maximum(most, x @ x[j])
keep("labels", features=x, relevance=r, options=np.array([lam, k, temperature]), soft=1 - left)

# The whole model.
D, M, H = 6, 5, 8
d = D + 2
sizes = [17, 4, 1]
query, student = torch.nn.Linear(d, d), [torch.nn.Linear(5 * d, H), torch.nn.Linear(H, 1)]
key, value = torch.nn.Linear(d, d, bias=False), torch.nn.Linear(d, d, bias=False)
features = F.normalize(torch.randn(sum(sizes), D), dim=1).requires_grad_()
relevance = torch.rand(sum(sizes))
pool_logits = torch.randn(sum(sizes), requires_grad=True)
labels = (torch.rand(sum(sizes)) < 0.3).double()
relaxation, pairwise = 0.8, 0.3
logits, loss, start = [], 0, 0
for size in sizes:
    rows = slice(start, start + size)
    r, a = relevance[rows], pool_logits[rows]
    sd = r.std(unbiased=False)
    z = (r - r.mean()) / sd if sd > 0 else torch.zeros_like(r)
    e = torch.cat([features[rows], z[:, None], r[:, None]], 1)
    m = min(M, size)
    pool = torch.topk(a, m).indices
    soft = relaxed(a, m, relaxation)
    weights = (1 + soft - soft.detach())[pool]
    own = torch.full((size,), -1)
    own[pool] = torch.arange(m)
    p, n = contrast(query(e), key(e[pool]), value(e[pool]), own, weights, 1.0)
    h = torch.cat([e, p, n, e * p, e * n], 1)
    out_z = student[1](torch.relu(student[0](h)))[:, 0]
    y = labels[rows]
    loss = loss + F.binary_cross_entropy_with_logits(out_z, y) / len(sizes)
    better = y[:, None] > y[None, :]
    if better.any():
        loss = loss + pairwise * F.softplus(-(out_z[:, None] - out_z[None, :]))[better].mean() / len(sizes)
    logits.append(out_z)
    start += size
loss.backward()
keep("model", features=features, relevance=relevance, pool_logits=pool_logits, labels=labels, sizes=np.array(sizes),
     options=np.array([M, relaxation, pairwise]), logits=torch.cat(logits), loss=loss, dfeatures=features.grad,
     dpool_logits=pool_logits.grad)
for name, layer in (("query", query), ("key", key), ("value", value), ("student.hidden.0.linear", student[0]),
                    ("student.last.linear", student[1])):
    for kind, parameter in layer.named_parameters():
        keep("model", **{f"{name}.{kind}": parameter, f"gradient.{name}.{kind}": parameter.grad})

safetensors_writer.write(
    pathlib.Path(__file__).with_suffix(".safetensors"),
    out,
    {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
)
