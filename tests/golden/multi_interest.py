#!/usr/bin/env python3
"""Golden vectors for multi-interest extraction, made with PyTorch in double: writes multi_interest.safetensors beside this script.

    python3 multi_interest.py

Written user by user from the formulas of ComiRec (arXiv 2005.09347) with autograd; the mask removes rows before anything is computed.
"""
import pathlib
import platform

import numpy as np
import torch

import safetensors_writer

torch.manual_seed(20250312)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
out = {}
lengths = [3, 0, 1, 7, 5]
offsets = np.concatenate([[0], np.cumsum(lengths)])
width, hidden, interests, longest = 6, 9, 3, 8

x = torch.randn(offsets[-1], width, requires_grad=True)
mask = torch.ones(offsets[-1], dtype=torch.bool)
mask[[1, 5, 9]] = False
dz = torch.randn(len(lengths) * interests, width)
out.update(x=x.detach().numpy(), mask=mask.numpy().astype(np.uint8), offsets=offsets.astype(np.int64), dz=dz.numpy())

positions = torch.randn(longest, width, requires_grad=True)
w1 = torch.randn(hidden, width, requires_grad=True)
w2 = torch.randn(interests, hidden, requires_grad=True)
z = []
for first, last in zip(offsets[:-1], offsets[1:]):
    keep = mask[first:last]
    values = x[first:last][keep]
    if len(values) == 0:
        z.append(torch.zeros(interests, width))
        continue
    keys = values + positions[longest - (last - first):][keep]  # the last behaviour has the last position
    a = torch.softmax(w2 @ torch.tanh(keys @ w1.T).T, dim=1)
    z.append(a @ values)
z = torch.cat(z)
z.backward(dz)
out.update({"sa.positions": positions.detach().numpy(), "sa.w1": w1.detach().numpy(), "sa.w2": w2.detach().numpy(),
            "sa.z": z.detach().numpy(), "sa.dx": x.grad.numpy().copy(), "sa.dpositions": positions.grad.numpy(),
            "sa.dw1": w1.grad.numpy(), "sa.dw2": w2.grad.numpy()})

x.grad = None
weight = torch.randn(width, width, requires_grad=True)
start = torch.randn(interests, longest)


def squash(v):
    square = (v * v).sum(-1, keepdim=True)
    return square / (1 + square) * v / torch.sqrt(square)


z = []
for first, last in zip(offsets[:-1], offsets[1:]):
    keep = mask[first:last]
    if keep.sum() == 0:
        z.append(torch.zeros(interests, width))
        continue
    u = x[first:last][keep] @ weight.T
    b = start[:, longest - (last - first):][:, keep]
    for iteration in range(3):
        c = torch.softmax(b, dim=0)
        seen = u if iteration == 2 else u.detach()  # gradients flow through the last iteration only
        caps = squash(c @ seen)
        b = (b + caps @ seen.T).detach()
    z.append(caps)
z = torch.cat(z)
z.backward(dz)
out.update({"dr.weight": weight.detach().numpy(), "dr.logits": start.numpy(), "dr.z": z.detach().numpy(),
            "dr.dx": x.grad.numpy().copy(), "dr.dweight": weight.grad.numpy()})

safetensors_writer.write(pathlib.Path(__file__).with_suffix(".safetensors"), out,
                         {"torch": torch.__version__, "python": platform.python_version()})
