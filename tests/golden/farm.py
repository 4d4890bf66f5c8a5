#!/usr/bin/env python3
"""Golden vectors for models/farm.hpp: the whole model written with PyTorch's FFT, attention, norms and autograd in double, user by user;
writes farm.safetensors.

    python3 farm.py
"""
import math
import pathlib
import platform

import numpy as np
import torch
import torch.nn.functional as F

import safetensors_writer

torch.manual_seed(20261129)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
D, heads, C, P, align_weight = 6, 2, 2, 4, 0.3
vo, lo, co = [0, 5, 9, 10, 17], [0, 3, 3, 5, 9], [0, 2, 3, 3, 5]  # the second user has no live behaviours, the third no candidates
users = len(vo) - 1
parameters = {}


def parameter(name, *shape):
    parameters[name] = (torch.randn(*shape) * 0.5).requires_grad_()


for d in ("video", "live"):
    for part, out, inputs in (("hidden.0", D, D + C), ("last", 2, D)):
        parameter(f"{d}_filter.gate.{part}.linear.weight", out, inputs)
        parameter(f"{d}_filter.gate.{part}.linear.bias", out)
    parameter(f"{d}_projection.weight", P, D)
    for step in ("intra.attention", "cross.attention", "target"):
        parameter(f"{d}_{step}.in_proj_weight", 3 * D, D)
        parameter(f"{d}_{step}.in_proj_bias", 3 * D)
        parameter(f"{d}_{step}.out_proj.weight", D, D)
        parameter(f"{d}_{step}.out_proj.bias", D)
    for step in ("intra", "cross"):
        parameter(f"{d}_{step}.norm.weight", D)
        parameter(f"{d}_{step}.norm.bias", D)
parameter("log_scale", 1)
inputs = {"video": torch.randn(vo[-1], D), "live": torch.randn(lo[-1], D), "candidates": torch.randn(co[-1], D), "context": torch.randn(users, C)}
for x in inputs.values():
    x.requires_grad_()


def part(name, offsets, b):
    return inputs[name][offsets[b]:offsets[b + 1]]


def gated_bands(x, context, prefix):
    n = len(x)
    if n == 0:
        return x
    p = torch.cat([x.mean(0), context])
    h = torch.relu(F.linear(p, parameters[prefix + "hidden.0.linear.weight"], parameters[prefix + "hidden.0.linear.bias"]))
    gains = 2 * torch.sigmoid(F.linear(h, parameters[prefix + "last.linear.weight"], parameters[prefix + "last.linear.bias"]))
    bins = n // 2 + 1
    keep = min(max(math.ceil(0.25 * bins), 1), bins)
    low = torch.fft.irfft(torch.fft.rfft(x, dim=0) * (torch.arange(bins) < keep)[:, None], n=n, dim=0)
    return gains[0] * low + gains[1] * (x - low)


def attention(q, k, prefix):
    if len(q) == 0:
        return q
    if len(k) == 0:  # nothing to look at: the output's bias
        return parameters[prefix + ".out_proj.bias"].expand(len(q), D)
    y, _ = F.multi_head_attention_forward(
        q[:, None], k[:, None], k[:, None], D, heads, parameters[prefix + ".in_proj_weight"], parameters[prefix + ".in_proj_bias"], None,
        None, False, 0.0, parameters[prefix + ".out_proj.weight"], parameters[prefix + ".out_proj.bias"], training=False, need_weights=False)
    return y[:, 0]


def sublayer(x, z, prefix):
    return F.layer_norm(x + attention(x, z, prefix + ".attention"), (D,), parameters[prefix + ".norm.weight"], parameters[prefix + ".norm.bias"])


rows, means = [], {"video": [], "live": []}
for b in range(users):
    context = inputs["context"][b]
    fv = gated_bands(part("video", vo, b), context, "video_filter.gate.")
    fl = gated_bands(part("live", lo, b), context, "live_filter.gate.")
    if len(fv) and len(fl):
        for d, f in (("video", fv), ("live", fl)):
            means[d].append(F.normalize(F.linear(f.mean(0), parameters[d + "_projection.weight"]), dim=0))
    av, al = sublayer(fv, fv, "video_intra"), sublayer(fl, fl, "live_intra")
    cv, cl = sublayer(av, al, "video_cross"), sublayer(al, av, "live_cross")
    e = part("candidates", co, b)
    rows.append(torch.cat([attention(e, cl, "live_target"), attention(e, cv, "video_target"), e], 1))
y = torch.cat(rows)
z = parameters["log_scale"].exp() * torch.stack(means["video"]) @ torch.stack(means["live"]).t()
target = torch.arange(len(z))
align = (F.cross_entropy(z, target) + F.cross_entropy(z.t(), target)) / 2
dy = torch.randn_like(y)
loss = (y * dy).sum() + align_weight * align
wanted = {**{"d." + k: v for k, v in parameters.items()}, **{"d" + k: v for k, v in inputs.items()}}
grads = torch.autograd.grad(loss, list(wanted.values()))
out = {k: v.detach().numpy() for k, v in {**parameters, **inputs, "y": y, "dy": dy, "align": align.reshape(1)}.items()}
out |= {k: g.numpy() for k, g in zip(wanted, grads)}
out |= {"video_offsets": np.array(vo), "live_offsets": np.array(lo), "candidate_offsets": np.array(co)}
safetensors_writer.write(
    pathlib.Path(__file__).with_suffix(".safetensors"),
    out,
    {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
)
