#!/usr/bin/env python3
"""Golden vectors for diffusion on the sphere and DimeRec's aggregation, made with PyTorch in double: writes dimerec.safetensors.

    python3 dimerec.py

Formulas of docs/dimerec.md in plain torch operations, gradients by autograd.
"""
import math
import pathlib
import platform

import numpy as np
import torch
import torch.nn.functional as F

import safetensors_writer

torch.manual_seed(20250313)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
out = {}


def keep(prefix, **tensors):
    for name, value in tensors.items():
        out[f"{prefix}.{name}"] = value.detach().numpy().copy()


# Cosine schedule of 12 steps.
T, rows, width, interests = 12, 7, 6, 3
f = torch.cos((torch.arange(T + 1) / T + 0.008) / 1.008 * math.pi / 2) ** 2
alpha_bar = torch.cat([torch.ones(1), torch.cumprod(1 - torch.clamp(1 - f[1:] / f[:-1], max=0.999), 0)])
t = torch.tensor([1, 12, 3, 7, 7, 2, 11])
a, s = torch.sqrt(alpha_bar[t])[:, None], torch.sqrt(1 - alpha_bar[t])[:, None]

# Noise along great circles. x0 is a leaf: the formula is differentiated as it stands, at unit x0.
x0 = F.normalize(torch.randn(rows, width)).requires_grad_()
eps = torch.randn(rows, width, requires_grad=True)
g = torch.randn(rows, width)
tangent = eps - (eps * x0).sum(1, keepdim=True) * x0
xt = a * x0 + s * tangent / tangent.norm(dim=1, keepdim=True)
xt.backward(g)
keep("sphere", x0=x0, eps=eps, t=t, g=g, xt=xt, dx0=x0.grad, deps=eps.grad, alpha_bar=alpha_bar)

x0.grad, eps.grad = None, None
tangent = eps - (eps * x0).sum(1, keepdim=True) * x0
tangent.backward(g)
keep("tangent", y=tangent, dx=x0.grad, de=eps.grad)

x0.grad = None
v = (torch.randn(rows, width) * torch.tensor([1e-5, 1e-2, 0.05, 0.5, 1, 2, 0.2])[:, None]).requires_grad_()
r = v.norm(dim=1, keepdim=True)
y = torch.cos(r) * x0 + torch.sin(r) / r * v
y.backward(g)
keep("exp", v=v, y=y, dx=x0.grad, dv=v.grad)

# The aggregation.
p = {}


def linear(name, rows_, cols, bias=True):
    p[name + ".weight"] = (torch.randn(rows_, cols) / math.sqrt(cols)).requires_grad_()
    if bias:
        p[name + ".bias"] = torch.randn(rows_).requires_grad_()


linear("time.linear_1", 2 * width, width)
linear("time.linear_2", width, 2 * width)
for name in ("query", "key", "value"):
    linear(name, width, width, bias=False)
p["null_interests"] = torch.randn(interests, width, requires_grad=True)
linear("net.hidden.0.linear", 4 * width, 3 * width)
linear("net.last.linear", width, 4 * width)


def apply(name, x):
    return F.linear(x, p[name + ".weight"], p.get(name + ".bias"))


x = F.normalize(torch.randn(rows, width)).requires_grad_()
z = torch.randn(rows, interests, width, requires_grad=True)
mask = torch.tensor([1, 1, 0, 1, 1, 0, 1], dtype=torch.uint8)
half = width // 2
angles = (1000 / T) * t[:, None] * 10000 ** (-torch.arange(half) / half)
e = apply("time.linear_2", F.gelu(apply("time.linear_1", torch.cat([torch.cos(angles), torch.sin(angles)], 1))))
state = math.sqrt(width) * x
guide = torch.where(mask.bool()[:, None, None], z, p["null_interests"])
query = apply("query", state) + e
w = torch.softmax((apply("key", guide) @ query[:, :, None]).squeeze(2) / math.sqrt(width), 1)
c = (w[:, :, None] * apply("value", guide)).sum(1)
raw = apply("net.last.linear", F.gelu(apply("net.hidden.0.linear", torch.cat([state, c, e], 1))))
y = F.normalize(raw)
y.backward(g)
keep("aggregator", x=x, z=z.reshape(-1, width), keep=mask, y=y, dx=x.grad, dz=z.grad.reshape(-1, width))
for name, value in p.items():
    keep("aggregator", **{name: value, "d." + name: value.grad})

safetensors_writer.write(pathlib.Path(__file__).with_suffix(".safetensors"), out,
                         {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()})
