#!/usr/bin/env python3
"""Golden vectors for attention poolers, made with PyTorch in double: writes pooling.safetensors beside this script.

    python3 pooling.py

User by user from the papers' equations (Set Transformer, arXiv 1810.00825; resampler of arXiv 2407.12002; EM3, arXiv 2404.06078; additive
attention, arXiv 1409.0473), with autograd.
"""
import math
import pathlib
import platform

import numpy as np
import torch
import torch.nn.functional as F

import safetensors_writer

torch.manual_seed(20261202)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
out = {}
lengths = [3, 0, 1, 9]
offsets = np.concatenate([[0], np.cumsum(lengths)])
out["offsets"] = offsets.astype(np.int64)
p = {}


def new(name, *shape, scale=0.6):
    p[name] = (torch.randn(*shape) * scale).requires_grad_()


def linear(name, rows):
    return F.linear(rows, p[name + ".weight"], p[name + ".bias"])


def new_linear(name, inputs, outputs):
    new(name + ".weight", outputs, inputs)
    new(name + ".bias", outputs)


def new_norm(name, width):
    new(name + ".weight", width)
    new(name + ".bias", width)


def norm(name, rows):
    return F.layer_norm(rows, rows.shape[-1:], p[name + ".weight"], p[name + ".bias"], eps=1e-5)


def attend(q, k, v, heads, scale):
    split = lambda m: m.view(m.shape[0], heads, m.shape[1] // heads).transpose(0, 1)
    a = torch.softmax(split(q) @ split(k).transpose(1, 2) * scale, -1) if len(k) else torch.zeros(heads, len(q), 0)
    return (a @ split(v)).transpose(0, 1).reshape(len(q), v.shape[1])


def finish(name, x, y, more={}):
    dy = torch.randn(*y.shape)
    y.backward(dy)
    out.update({f"{name}.x": x.detach().numpy(), f"{name}.dy": dy.numpy(), f"{name}.y": y.detach().numpy(), f"{name}.dx": x.grad.numpy()})
    for key, value in {**p, **more}.items():
        out[f"{name}.{key}"], out[f"{name}.d.{key}"] = value.detach().numpy(), value.grad.numpy()
    p.clear()


def users(x):
    return [x[a:b] for a, b in zip(offsets[:-1], offsets[1:])]


def new_mab(name, x_width, y_width, width, norms):
    for part, inputs in (("fc_q", x_width), ("fc_k", y_width), ("fc_v", y_width), ("fc_o", width)):
        new_linear(name + part, inputs, width)
    if norms:
        new_norm(name + "ln0", width)
        new_norm(name + "ln1", width)


def mab(name, x, y, heads, scale, norms):
    q = linear(name + "fc_q", x)
    h = q + attend(q, linear(name + "fc_k", y), linear(name + "fc_v", y), heads, scale)
    h = norm(name + "ln0", h) if norms else h
    h = h + torch.relu(linear(name + "fc_o", h))
    return norm(name + "ln1", h) if norms else h


def rows(width):
    return torch.randn(int(offsets[-1]), width, requires_grad=True)


x = rows(5)
new("S", 3, 6)
new_mab("mab.", 6, 5, 6, True)
finish("pma", x, torch.cat([mab("mab.", p["S"], z, 2, 1 / math.sqrt(3), True) for z in users(x)]))

x = rows(5)
new("I", 4, 6)
new_mab("mab0.", 6, 5, 6, False)
new_mab("mab1.", 5, 6, 6, False)
scale = 1 / math.sqrt(6)  # of the published code
finish("isab", x, torch.cat([mab("mab1.", z, mab("mab0.", p["I"], z, 3, scale, False), 3, scale, False) for z in users(x)]))

x = rows(5)
new("u", 7, 5)
new("w", 7)
finish("additive", x, torch.stack([torch.softmax(torch.tanh(z @ p["u"].T) @ p["w"], 0) @ z if len(z) else torch.zeros(5) for z in users(x)]))


def self_attention(name, x, z, width, heads):
    w, b = p[name + "in_proj_weight"], p[name + "in_proj_bias"]
    q, k, v = (F.linear(s, w[i * width:(i + 1) * width], b[i * width:(i + 1) * width]) for i, s in enumerate((x, z, z)))
    return linear(name + "out_proj", attend(q, k, v, heads, 1 / math.sqrt(width // heads)))


def new_attention(name, width):
    new(name + "in_proj_weight", 3 * width, width)
    new(name + "in_proj_bias", 3 * width)
    new_linear(name + "out_proj", width, width)


x, condition = rows(6), torch.randn(len(lengths), 6, requires_grad=True)
new("queries", 2, 6)
new_norm("norm", 6)
for i in range(2):
    new_attention(f"layers.{i}.attention.", 6)
    new_norm(f"layers.{i}.norm1", 6)
    new_norm(f"layers.{i}.norm2", 6)
    new_linear(f"layers.{i}.linear1", 6, 10)
    new_linear(f"layers.{i}.linear2", 10, 6)
y = []
for b, tokens in enumerate(users(x)):
    z = p["queries"] + condition[b]
    for i in range(2):
        layer = f"layers.{i}."
        kn = norm(layer + "norm1", torch.cat([tokens, z]))
        a = z + self_attention(layer + "attention.", norm(layer + "norm1", z), kn, 6, 3)
        z = a + linear(layer + "linear2", F.gelu(linear(layer + "linear1", norm(layer + "norm2", a))))
    y.append(norm("norm", z))
finish("resampler", x, torch.cat(y), {"condition": condition})

for name, count in (("fq", 1), ("fq2", 3)):
    x = rows(6)
    new("queries", 2, 6)
    new_linear("mm_proj", 12, 6)
    for i in range(count):
        new_attention(f"layers.{i}.attention.", 6)
        new_norm(f"layers.{i}.norm", 6)
    y = []
    for tokens in users(x):
        z = torch.cat([p["queries"], tokens])
        for i in range(count):
            z = norm(f"layers.{i}.norm", z + self_attention(f"layers.{i}.attention.", z, z, 6, 2))
        y.append(linear("mm_proj", z[:2].reshape(-1)))
    finish(name, x, torch.stack(y))

x, y, g = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5), torch.randn(4, 5)
y[2] = 0
y.requires_grad_()
z = x - (x * y).sum(1, keepdim=True) / ((y * y).sum(1, keepdim=True) + 1e-3) * y
z.backward(g)
out.update({"orthogonal.x": x.detach().numpy(), "orthogonal.y": y.detach().numpy(), "orthogonal.out": z.detach().numpy(),
            "orthogonal.dout": g.numpy(), "orthogonal.dx": x.grad.numpy(), "orthogonal.dy": y.grad.numpy()})

safetensors_writer.write(pathlib.Path(__file__).with_suffix(".safetensors"), out,
                         {"torch": torch.__version__, "python": platform.python_version()})
