#!/usr/bin/env python3
"""Golden vectors for activations and their gradients, made with PyTorch in double: writes activations.safetensors beside this script.

    python3 activations.py
"""
import pathlib
import platform

import numpy as np
import torch
import torch.nn.functional as F

import safetensors_writer

torch.manual_seed(20261125)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
out = {}

x = (torch.randn(9, 21) * 3).requires_grad_()
dy = torch.randn(9, 21)
with torch.no_grad():
    x[0, :6] = torch.tensor([0.0, -0.0, 40.0, -40.0, 1e-9, -1e-9])
out |= {"x": x.detach().numpy(), "dy": dy.numpy()}
functions = {
    "relu": torch.relu, "sigmoid": torch.sigmoid, "silu": F.silu, "tanh": torch.tanh, "gelu": F.gelu,
    # PyTorch's switch to y = x above a threshold is not ours.
    "softplus": lambda v: F.softplus(v, threshold=1000), "leaky_relu": F.leaky_relu,
}
for name, f in functions.items():
    y = f(x)
    (dx,) = torch.autograd.grad(y, x, dy)
    out |= {name + ".y": y.detach().numpy(), name + ".dx": dx.numpy()}

for name, slopes in {"prelu_one": 1, "prelu_each": 21}.items():
    layer = torch.nn.PReLU(slopes)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(slopes))
    y = layer(x)
    dx, dw = torch.autograd.grad(y, [x, layer.weight], dy)
    out |= {name + ".weight": layer.weight.detach().numpy(), name + ".y": y.detach().numpy(), name + ".dx": dx.numpy(),
            name + ".dweight": dw.numpy()}

# Dice from its formula, over PyTorch's BatchNorm1d.
bn = torch.nn.BatchNorm1d(21, eps=1e-8, momentum=0.1, affine=False)
alpha = torch.randn(21, requires_grad=True)
p = torch.sigmoid(bn(x))
y = p * x + (1 - p) * alpha * x
dx, dalpha = torch.autograd.grad(y, [x, alpha], dy)
bn.eval()
p = torch.sigmoid(bn(x))
served = p * x + (1 - p) * alpha * x
out |= {"dice.alpha": alpha.detach().numpy(), "dice.y": y.detach().numpy(), "dice.dx": dx.numpy(), "dice.dalpha": dalpha.numpy(),
        "dice.running_mean": bn.running_mean.numpy(), "dice.running_var": bn.running_var.numpy(), "dice.served": served.detach().numpy()}

safetensors_writer.write(
    pathlib.Path(__file__).with_suffix(".safetensors"),
    out,
    {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
)
