#!/usr/bin/env python3
"""Golden vectors for LightSANs (SIGIR 2021), made with PyTorch in double: writes lightsans.safetensors beside this script.

    python3 lightsans.py

User by user from the paper's equations: keys and values are projected first and pooled then; the last softmax runs over interests.
"""
import math
import pathlib
import platform

import numpy as np
import torch
import torch.nn.functional as F

import safetensors_writer

torch.manual_seed(20261201)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
out = {}
lengths, width, heads, interests, longest = [3, 0, 1, 9, 12], 6, 2, 4, 14
offsets = np.concatenate([[0], np.cumsum(lengths)])
out["offsets"] = offsets.astype(np.int64)


def case(name, positions):
    p = {}
    names = ["query", "key", "value", "dense"] + (["pos_q_linear", "pos_k_linear"] if positions else [])
    for part in names:
        p[part + ".weight"], p[part + ".bias"] = torch.randn(width, width) * 0.6, torch.randn(width) * 0.5
    p["theta_key"], p["theta_value"] = torch.randn(interests, width) * 0.5, torch.randn(interests, width) * 0.5
    if positions:
        p["positions"], p["pos_ln.weight"], p["pos_ln.bias"] = torch.randn(longest, width), torch.randn(width), torch.randn(width)
    for v in p.values():
        v.requires_grad_()
    x, dy = torch.randn(int(offsets[-1]), width, requires_grad=True), torch.randn(int(offsets[-1]), width)
    linear = lambda part, rows: F.linear(rows, p[part + ".weight"], p[part + ".bias"])
    split = lambda m: m.view(m.shape[0], heads, width // heads).transpose(0, 1)
    y = []
    for first, last in zip(offsets[:-1], offsets[1:]):
        rows = x[first:last]
        if len(rows) == 0:
            continue
        q, k, v = linear("query", rows), linear("key", rows), linear("value", rows)
        kt, vt = torch.softmax(k @ p["theta_key"].T, 0).T @ k, torch.softmax(v @ p["theta_value"].T, 0).T @ v
        o = torch.softmax(split(q) @ split(kt).transpose(1, 2) / math.sqrt(width // heads), -1) @ split(vt)
        if positions:
            place = F.layer_norm(p["positions"][:len(rows)], (width,), p["pos_ln.weight"], p["pos_ln.bias"], eps=1e-5)
            a = split(linear("pos_q_linear", place)) @ split(linear("pos_k_linear", place)).transpose(1, 2)
            o = o + torch.softmax(a / math.sqrt(2 * (width // heads)), -1) @ split(v)
        y.append(linear("dense", o.transpose(0, 1).reshape(len(rows), width)))
    y = torch.cat(y)
    y.backward(dy)
    out.update({f"{name}.x": x.detach().numpy(), f"{name}.dy": dy.numpy(), f"{name}.y": y.detach().numpy(), f"{name}.dx": x.grad.numpy()})
    for key, value in p.items():
        out[f"{name}.{key}"], out[f"{name}.d.{key}"] = value.detach().numpy(), value.grad.numpy()


case("items", False)
case("places", True)

safetensors_writer.write(pathlib.Path(__file__).with_suffix(".safetensors"), out,
                         {"torch": torch.__version__, "python": platform.python_version()})
