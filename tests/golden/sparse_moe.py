#!/usr/bin/env python3
"""Golden vectors for sparse routing, made with PyTorch in double: writes sparse_moe.safetensors beside this script.

    python3 sparse_moe.py

Written from the papers' equations with torch.topk, dense masks and autograd; no dispatch: every expert sees every row.
"""
import pathlib
import platform

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import safetensors_writer

torch.manual_seed(20240611)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
out = {}


def keep(prefix, **tensors):
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor):
            value = torch.tensor(value)
        out[f"{prefix}.{name}"] = value.detach().numpy().copy()


def choose(score, k):
    return torch.topk(score, k, dim=-1).indices


def route(l, k, mode, bias=None, scale=1.0):
    """Choice and weights."""
    if mode == "softmax_then_topk":
        p = F.softmax(l, -1)
        i = choose(p.detach() + (0 if bias is None else bias), k)
        return i, p.gather(-1, i)
    if mode == "topk_then_softmax":
        i = choose(l.detach() + (0 if bias is None else bias), k)
        return i, F.softmax(l.gather(-1, i), -1)
    s = torch.sigmoid(l)
    i = choose(s.detach() + (0 if bias is None else bias), k)
    w = s.gather(-1, i)
    return i, scale * w / w.sum(-1, keepdim=True)


# Routers.
bias = 0.3 * torch.randn(7)
for mode in ["softmax_then_topk", "topk_then_softmax", "sigmoid"]:
    for biased in [False, True]:
        l = (2 * torch.randn(9, 7)).requires_grad_()
        i, w = route(l, 3, mode, bias if biased else None, 2.5)
        dw = torch.randn_like(w)
        w.backward(dw)
        keep(f"route.{mode}.{int(biased)}", logits=l, experts=i, weights=w, dweights=dw, dlogits=l.grad)
keep("route", bias=bias)

# Groups: 12 experts in 4 groups, 2 kept, by the sum of their two best biased scores.
l, b = torch.randn(8, 12), 0.2 * torch.randn(12)
s = torch.sigmoid(l)
g = (s + b).reshape(8, 4, 3).topk(2, -1).values.sum(-1)
mask = torch.zeros(8, 4).scatter(1, g.topk(2, -1).indices, 1).repeat_interleave(3, 1)
i = torch.where(mask > 0, s + b, torch.full_like(s, -np.inf)).topk(3, -1).indices
w = s.gather(1, i)
keep("groups", logits=l, bias=b, experts=i, weights=w / w.sum(1, keepdim=True))

# Balance losses.
l = torch.randn(11, 5, requires_grad=True)
i, _ = route(l, 2, "topk_then_softmax")
f = F.one_hot(i, 5).sum((0, 1)) / (11 * 2)
loss = 0.01 * 5 * (f * F.softmax(l, 1).mean(0)).sum()
loss.backward()
keep("switch", logits=l, experts=i, value=loss, dlogits=l.grad)
l.grad = None
loss = 1e-3 * (torch.logsumexp(l, 1) ** 2).mean()
loss.backward()
keep("z", value=loss, dlogits=l.grad)
cv2 = lambda v: v.var(unbiased=False) / (v.mean() ** 2 + 1e-10)
w = torch.rand(11, 2, requires_grad=True)
loss = 0.1 * cv2(torch.zeros(5).index_add(0, i.reshape(-1), w.reshape(-1)))
loss.backward()
keep("importance", weights=w, value=loss, dweights=w.grad)
l.grad = None
offsets, total = [0, 4, 4, 11], 0
for a, b_ in zip(offsets, offsets[1:]):
    if a == b_:
        continue
    s = torch.sigmoid(l[a:b_])
    fraction = F.one_hot(i[a:b_], 5).sum((0, 1)) * 5 / (2 * (b_ - a))
    total = total + 0.1 * (fraction * (s / s.sum(1, keepdim=True)).mean(0)).sum() / 2
total.backward()
keep("sequence", offsets=offsets, value=total, dlogits=l.grad)
clean, raw = torch.randn(11, 5, requires_grad=True), torch.randn(11, 5, requires_grad=True)
eps = torch.randn(11, 5)
sd = F.softplus(raw) + 1e-2
noisy = clean + eps * sd
top = noisy.topk(3, 1)
chosen = F.one_hot(top.indices[:, :2], 5).sum(1) > 0
threshold = torch.where(chosen, top.values[:, 2:3], top.values[:, 1:2])
loss = 0.2 * cv2(torch.distributions.Normal(0.0, 1.0).cdf((clean - threshold) / sd).sum(0))
dn = torch.randn(11, 5)
(loss + (noisy * dn).sum()).backward()
keep("load", clean=clean, raw=raw, epsilon=eps, noisy=noisy, deviation=sd, experts=top.indices[:, :2], value=loss, dnoisy=dn,
     dclean=clean.grad, draw=raw.grad)

# Expert choice, through experts of one layer.
x = torch.randn(10, 6, requires_grad=True)
gate = nn.Linear(6, 4, bias=False)
experts = [nn.Linear(6, 3) for _ in range(4)]
p = F.softmax(gate(x), 1)
cap = 5
chosen = p.detach().T.topk(cap, 1).indices
y = torch.zeros(10, 3)
for e in range(4):
    y = y.index_add(0, chosen[e], p[chosen[e], e][:, None] * torch.relu(experts[e](x[chosen[e]])))
dy = torch.randn_like(y)
y.backward(dy)
cat = lambda a, g=False: torch.cat([getattr(m, a).grad if g else getattr(m, a) for m in experts])
keep("choice", x=x, y=y, dy=dy, dx=x.grad, chosen=chosen, gate=gate.weight, dgate=gate.weight.grad, weight=cat("weight"),
     bias=cat("bias"), dweight=cat("weight", True), dbias=cat("bias", True))

# Whole layers: tasks with sparse gates over shared experts; losses are part of the gradient.
for name, tasks, k, mode, hidden, losses in [("moe", 1, 1, "softmax_then_topk", 8, True), ("mmoe", 3, 2, "topk_then_softmax", 0, False),
                                             ("deepseek", 2, 3, "sigmoid", 7, True)]:
    e, d, h = 5, 6, 4
    x = torch.randn(12, d, requires_grad=True)
    gates = nn.Linear(d, tasks * e, bias=False)
    with torch.no_grad():
        gates.weight *= 4
    first = [nn.Linear(d, hidden) for _ in range(e)] if hidden else None
    last = [nn.Linear(hidden or d, h) for _ in range(e)]
    a = torch.stack([torch.relu(last[i](torch.relu(first[i](x)) if hidden else x)) for i in range(e)], 1)
    l = gates(x).reshape(12, tasks, e)
    i, w = route(l, k, mode, None, 2.0)
    y = torch.stack([(w[:, t, :, None] * a.gather(1, i[:, t, :, None].expand(-1, -1, h))).sum(1) for t in range(tasks)], 1).reshape(12, -1)
    balance = torch.zeros(())
    if losses:
        for t in range(tasks):
            f = F.one_hot(i[:, t], e).sum((0, 1)) / (12 * k)
            balance = balance + 0.5 * e * (f * F.softmax(l[:, t], 1).mean(0)).sum() + 0.1 * (torch.logsumexp(l[:, t], 1) ** 2).mean()
            balance = balance + 0.3 * cv2(torch.zeros(e).index_add(0, i[:, t].reshape(-1), w[:, t].reshape(-1)))
    dy = torch.randn_like(y)
    ((y * dy).sum() + balance).backward()
    keep(name, x=x, y=y, dy=dy, dx=x.grad, choices=i.reshape(12, -1), weights=w.reshape(12, -1), balance=balance)
    keep(name, **{"gates.weight": gates.weight, "d.gates.weight": gates.weight.grad})
    for layer, parts in enumerate([first, last] if hidden else [last]):
        for q in ["weight", "bias"]:
            zero = lambda m: getattr(m, q).grad if getattr(m, q).grad is not None else torch.zeros_like(getattr(m, q))
            keep(name, **{f"experts.{layer}.{q}": torch.cat([getattr(m, q) for m in parts]),
                          f"d.experts.{layer}.{q}": torch.cat([zero(m) for m in parts])})

safetensors_writer.write(
    pathlib.Path(__file__).with_suffix(".safetensors"),
    out,
    {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
)
