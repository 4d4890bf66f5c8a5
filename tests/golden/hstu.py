#!/usr/bin/env python3
"""Golden vectors for HSTU layers (arXiv 2402.17152), made with PyTorch in double: writes hstu.safetensors beside this script.

    python3 hstu.py

Padded batches and dense [L, L] masks and biases with autograd, as the authors' research code is organised, from the paper's equations.
"""
import math
import pathlib
import platform

import numpy as np
import torch
import torch.nn.functional as F

import safetensors_writer

torch.manual_seed(20261130)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
out = {}
lengths, width, heads, dk, dv, longest, buckets = [5, 0, 1, 12, 9], 6, 2, 3, 4, 12, 30
offsets = np.concatenate([[0], np.cumsum(lengths)])
total = int(offsets[-1])
x0 = torch.randn(total, width)
dy = torch.randn(total, width)
steps = torch.exp(torch.rand(total) * 14).long()
times = torch.cumsum(steps, 0)
out.update(x=x0.numpy(), dy=dy.numpy(), offsets=offsets.astype(np.int64), times=times.numpy())


def padded(rows):
    result = torch.zeros(len(lengths), longest, rows.shape[1], dtype=rows.dtype)
    mask = torch.zeros(len(lengths), longest, dtype=torch.bool)
    for b, n in enumerate(lengths):
        mask[b, :n] = True
    result[mask] = rows
    return result, mask


def layer(name, with_time, concat, group_norm, scale, targets=None):
    p = {"uvqk.weight": torch.randn(2 * heads * (dk + dv), width) * 0.7, "uvqk.bias": torch.randn(2 * heads * (dk + dv)) * 0.3,
         "o.weight": torch.randn(width, heads * dv * (3 if concat else 1)) * 0.5, "o.bias": torch.randn(width),
         "input_norm.weight": torch.randn(width), "input_norm.bias": torch.randn(width),
         "output_norm.weight": torch.randn(heads * dv), "output_norm.bias": torch.randn(heads * dv),
         "pos_w": torch.randn(2 * longest - 1)}
    if with_time:
        p["ts_w"] = torch.randn(buckets)
    for v in p.values():
        v.requires_grad_()
    rows = x0.clone().requires_grad_()
    x, mask = padded(rows)
    n = F.layer_norm(x, (width,), p["input_norm.weight"], p["input_norm.bias"], eps=1e-6)
    u, v, q, k = torch.split(F.silu(F.linear(n, p["uvqk.weight"], p["uvqk.bias"])), [heads * dv] * 2 + [heads * dk] * 2, dim=-1)
    split = lambda t, d: t.view(len(lengths), longest, heads, d).transpose(1, 2)
    s = scale * split(q, dk) @ split(k, dk).transpose(2, 3)
    i, j = torch.arange(longest)[:, None], torch.arange(longest)[None, :]
    count = torch.tensor(lengths)[:, None]
    candidates = torch.zeros(len(lengths), 1, dtype=torch.long) if targets is None else torch.tensor(targets)[:, None]
    place = torch.minimum(torch.arange(longest)[None, :], count - candidates)
    distance = place[:, None, :] - place[:, :, None]
    s = s + p["pos_w"][torch.clamp(longest - 1 + distance, 0, 2 * longest - 2)][:, None]
    if with_time:
        t, _ = padded(times[:, None])
        t = t[:, :, 0]
        last = torch.tensor([max(c - 1, 0) for c in lengths])
        following = torch.stack([torch.cat([row[1:], row[-1:]]) for row in t])
        for b, e in enumerate(last):
            following[b, e] = t[b, e]
        gap = torch.abs(following[:, :, None] - t[:, None, :]).clamp(min=1)
        bucket = torch.clamp((torch.log(gap.double()) / 0.301).long(), max=buckets - 1)
        s = s + p["ts_w"][bucket][:, None]
    visible = (distance < 0) | (i == j)[None]
    visible = visible & mask[:, None, :] & mask[:, :, None]
    a = F.silu(s) / longest * visible[:, None]
    o = (a @ split(v, dv)).transpose(1, 2).reshape(len(lengths), longest, heads * dv)
    if group_norm:
        o = F.layer_norm(o.view(len(lengths), longest, heads, dv), (dv,), eps=1e-6).reshape(o.shape)
        o = o * p["output_norm.weight"] + p["output_norm.bias"]
    else:
        o = F.layer_norm(o, (heads * dv,), p["output_norm.weight"], p["output_norm.bias"], eps=1e-6)
    z = torch.cat([u, o, u * o], -1) if concat else u * o
    y = (x + F.linear(z, p["o.weight"], p["o.bias"]))[mask]
    y.backward(dy)
    out[name + ".y"], out[name + ".dx"] = y.detach().numpy(), rows.grad.numpy()
    for key, value in p.items():
        out[f"{name}.{key}"], out[f"{name}.d.{key}"] = value.detach().numpy(), value.grad.numpy()


layer("plain", False, False, False, 1.0)
layer("time", True, False, False, 1 / math.sqrt(dk))
layer("all", True, True, True, 1.0)
out["targets"] = np.array([2, 0, 1, 12, 3], dtype=np.int64)
layer("targets", True, False, False, 1.0, [2, 0, 1, 12, 3])

safetensors_writer.write(pathlib.Path(__file__).with_suffix(".safetensors"), out,
                         {"torch": torch.__version__, "python": platform.python_version()})
