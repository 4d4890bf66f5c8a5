#!/usr/bin/env python3
"""Golden vectors for feature interactions, made with PyTorch in double: writes feature_interactions.safetensors beside this script.

    python3 feature_interactions.py

Written from the papers' equations: the factorisation machine as an explicit loop over pairs, experts as separate modules.
"""
import itertools
import pathlib
import platform

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import safetensors_writer

torch.manual_seed(20240612)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
out = {}


def keep(prefix, **tensors):
    for name, value in tensors.items():
        out[f"{prefix}.{name}"] = value.detach().numpy().copy()


def finish(prefix, x, y, **parameters):
    """Backward from random numbers; parameters are lists of tensors, kept one below the other."""
    dy = torch.randn_like(y)
    y.backward(dy)
    keep(prefix, x=x, y=y, dy=dy, dx=x.grad)
    for name, parts in parameters.items():
        name = name.replace("__", ".")
        keep(prefix, **{name: torch.cat([p for p in parts]), f"d.{name}": torch.cat([p.grad for p in parts])})


pairs = lambda e: sum(e[:, i] * e[:, j] for i, j in itertools.combinations(range(e.shape[1]), 2))
x = torch.randn(7, 5 * 9, requires_grad=True)
finish("fm", x, pairs(x.reshape(7, 5, 9)).sum(1, keepdim=True))
x = torch.randn(7, 5 * 18, requires_grad=True)
finish("fm_pooled", x, pairs(x.reshape(7, 5, 18)))

for name, act in [("senet", torch.sigmoid), ("senet_relu", torch.relu)]:
    x = torch.randn(8, 6 * 5, requires_grad=True)
    w1, w2 = nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False)
    e = x.reshape(8, 6, 5)
    a = act(w2(torch.relu(w1(e.mean(2)))))
    finish(name, x, (e * a[:, :, None]).reshape(8, 30), excitation__0__weight=[w1.weight], excitation__2__weight=[w2.weight])

for name, softmax, act in [("mixture", True, torch.tanh), ("mixture_sigmoid", False, torch.relu)]:
    layers, experts, r, d = 3, 4, 3, 10
    x = torch.randn(6, d, requires_grad=True)
    at, parameters = x, {}
    for l in range(layers):
        v = [nn.Linear(d, r, bias=False) for _ in range(experts)]
        c = [nn.Linear(r, r, bias=False) for _ in range(experts)]
        u = [nn.Linear(r, d, bias=False) for _ in range(experts)]
        b, g = torch.randn(d, requires_grad=True), nn.Linear(d, experts, bias=False)
        weights = F.softmax(g(at), 1) if softmax else torch.sigmoid(g(at))
        at = sum(weights[:, i:i + 1] * (x * (u[i](act(c[i](act(v[i](at))))) + b)) for i in range(experts)) + at
        parameters |= {f"layers__{l}__V": [m.weight for m in v], f"layers__{l}__C": [m.weight for m in c],
                       f"layers__{l}__U": [m.weight for m in u], f"layers__{l}__bias": [b], f"layers__{l}__gate__weight": [g.weight]}
    finish(name, x, at, **parameters)

safetensors_writer.write(
    pathlib.Path(__file__).with_suffix(".safetensors"),
    out,
    {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
)
