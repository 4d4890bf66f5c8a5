#!/usr/bin/env python3
"""Golden vectors for determinantal losses, made with PyTorch in double from the definitions: the N x N kernel, all subsets of k items one by
one, autograd. Writes dpp_loss.safetensors beside this script.

    python3 dpp_loss.py
"""
import itertools
import pathlib
import platform

import numpy as np
import torch

import safetensors_writer

torch.manual_seed(20240612)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
out = {}


def keep(prefix, **tensors):
    for name, value in tensors.items():
        array = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        out[f"{prefix}.{name}"] = np.atleast_1d(array).copy()


def log_det(m):
    return torch.linalg.slogdet(m)[1]


cases = [(9, 4, [7, 0, 3], 0.0), (9, 4, [1, 2, 3, 4, 5, 8], 0.05), (3, 6, [2, 0], 0.01), (8, 5, [], 0.1), (6, 3, [5, 1], 0.0)]
for number, (n, d, chosen, delta) in enumerate(cases):
    f = torch.randn(n, d, requires_grad=True)
    q = torch.exp(0.5 * torch.randn(n)).requires_grad_()
    v = q[:, None] * f
    kernel = v @ v.T + delta * torch.eye(n)
    loss = -log_det(kernel[chosen][:, chosen]) + log_det(kernel + torch.eye(n)) if chosen else log_det(kernel + torch.eye(n))
    loss.backward()
    keep(f"dpp_{number}", features=f, quality=q, chosen=np.array(chosen, dtype=np.int32), delta=delta, loss=loss, dfeatures=f.grad,
         dquality=q.grad)
    f.grad = q.grad = None
    if not chosen or delta > 0 and len(chosen) > d:
        continue
    v = q[:, None] * f
    kernel = v @ v.T
    k = len(chosen)
    total = sum(torch.linalg.det(kernel[list(s)][:, list(s)]) for s in itertools.combinations(range(n), k))
    loss = -log_det(kernel[chosen][:, chosen]) + torch.log(total)
    loss.backward()
    keep(f"kdpp_{number}", loss=loss, dfeatures=f.grad, dquality=q.grad)

x = torch.randn(5, 7, requires_grad=True)
loss = -log_det(x @ x.T + 0.02 * torch.eye(5)) / 5
loss.backward()
keep("volume", x=x, delta=0.02, loss=loss, dx=x.grad)
out["cases"] = np.array([len(cases)], dtype=np.int64)

safetensors_writer.write(
    pathlib.Path(__file__).with_suffix(".safetensors"),
    out,
    {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
)
