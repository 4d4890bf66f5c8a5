#!/usr/bin/env python3
"""Golden vectors for norms and multi-gate mixtures, made with PyTorch in double: writes mmoe.safetensors beside this script.

    python3 mmoe.py

Experts and gates are separate torch.nn modules, mixed with an einsum; only the file concatenates their weights.
"""
import pathlib
import platform

import numpy as np
import torch
import torch.nn.functional as F

import safetensors_writer

torch.manual_seed(20240609)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
out = {}


def keep(prefix, **tensors):
    for name, value in tensors.items():
        out[f"{prefix}.{name}"] = value.detach().numpy().copy()


# Norms: forward, backward; for batch norm two training steps, the running statistics after them, and serving.
x = (torch.randn(19, 21) * 3 + 5).requires_grad_()
dy = torch.randn(19, 21)
norm = torch.nn.LayerNorm(21)
torch.nn.init.normal_(norm.weight)
torch.nn.init.normal_(norm.bias)
y = norm(x)
y.backward(dy)
keep("layer_norm", x=x, dy=dy, weight=norm.weight, bias=norm.bias, y=y, dx=x.grad, dweight=norm.weight.grad, dbias=norm.bias.grad)

x.grad = None
weight = torch.randn(21, requires_grad=True)
y = weight * x / torch.sqrt((x * x).mean(1, keepdim=True) + 1e-6)
y.backward(dy)
keep("rms_norm", weight=weight, y=y, dx=x.grad, dweight=weight.grad)

x.grad = None
norm = torch.nn.BatchNorm1d(21)
torch.nn.init.normal_(norm.weight)
torch.nn.init.normal_(norm.bias)
first = torch.randn(7, 21)
norm(first)
y = norm(x)
y.backward(dy)
norm.eval()
keep("batch_norm", first=first, weight=norm.weight, bias=norm.bias, y=y, dx=x.grad, dweight=norm.weight.grad,
     dbias=norm.bias.grad, running_mean=norm.running_mean, running_var=norm.running_var, served=norm(x))


def stack(layers, name):
    return torch.cat([getattr(layer, name) for layer in layers])


def stack_gradient(layers, name):
    return torch.cat([getattr(layer, name).grad for layer in layers])


def mixture(prefix, rows, inputs, experts, outputs, tasks, hidden=0, norm=None, activation=torch.relu, bias=True, gate_hidden=0,
            gate_bias=False, temperature=1.0, visible=None):
    visible = visible or [list(range(experts))] * tasks
    x = torch.randn(rows, inputs, requires_grad=True)
    first = [torch.nn.Linear(inputs, hidden, bias=bias) for _ in range(experts)] if hidden else None
    last = [torch.nn.Linear(hidden or inputs, outputs, bias=bias) for _ in range(experts)]
    norms = None
    if norm:
        norms = [norm(outputs) for _ in range(experts)]
        for n in norms:
            torch.nn.init.normal_(n.weight)
            torch.nn.init.normal_(n.bias)
    gate_first = [torch.nn.Linear(inputs, gate_hidden) for _ in range(tasks)] if gate_hidden else None
    gate_last = [torch.nn.Linear(gate_hidden or inputs, len(v), bias=gate_bias) for v in visible]

    def run():
        a = []
        for e in range(experts):
            z = activation(first[e](x)) if hidden else x
            z = last[e](z)
            a.append(activation(norms[e](z) if norm else z))
        a = torch.stack(a, 1)
        ys, gs = [], []
        for t, own in enumerate(visible):
            z = torch.relu(gate_first[t](x)) if gate_hidden else x
            g = F.softmax(gate_last[t](z) / temperature, dim=1)
            gs.append(g)
            ys.append(torch.einsum("be,beh->bh", g, a[:, own]))
        return torch.stack(ys, 1).reshape(rows, -1), torch.cat(gs, 1)

    y, gates = run()
    dy = torch.randn(rows, tasks * outputs)
    y.backward(dy)
    keep(prefix, x=x, y=y, dy=dy, dx=x.grad, gates=gates)
    named = {"experts": last, "gates": gate_last}
    if hidden:
        named["experts.hidden.0"] = first
    if gate_hidden:
        named["gates.hidden.0"] = gate_first
    if norm:
        named["experts.norm"] = norms
    for name, layers in named.items():
        for p in ["weight", "bias"]:
            if getattr(layers[0], p) is not None:
                out[f"{prefix}.{name}.{p}"] = stack(layers, p).detach().numpy().copy()
                out[f"{prefix}.gradient.{name}.{p}"] = stack_gradient(layers, p).numpy().copy()
    if norm is torch.nn.BatchNorm1d:
        keep(prefix, **{"experts.norm.running_mean": stack(norms, "running_mean"), "experts.norm.running_var": stack(norms, "running_var")})
        for n in norms:
            n.eval()
        keep(prefix, served=run()[0])


mixture("plain", rows=13, inputs=9, experts=4, outputs=5, tasks=3)
mixture("home", rows=16, inputs=10, experts=3, outputs=17, tasks=2, norm=torch.nn.BatchNorm1d, activation=F.silu, bias=False)
mixture("layer", rows=11, inputs=7, experts=3, outputs=6, tasks=2, hidden=8, norm=torch.nn.LayerNorm, activation=F.silu,
        gate_hidden=5, gate_bias=True, temperature=0.5)
mixture("masked", rows=12, inputs=8, experts=5, outputs=19, tasks=3, gate_bias=True, visible=[[0, 3, 4], [2], [4, 1]])

safetensors_writer.write(
    pathlib.Path(__file__).with_suffix(".safetensors"),
    out,
    {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
)
