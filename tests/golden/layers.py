#!/usr/bin/env python3
"""Golden vectors for composed layers, made with PyTorch in double: writes layers.safetensors beside this script.

    python3 layers.py

Parameters are stored under the names that recops gives them, gradients under the same names with a leading "d.".
"""
import pathlib
import platform

import numpy as np
import torch
import torch.nn.functional as F

import safetensors_writer

torch.manual_seed(20261126)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
out = {}


def keep(case, x, y, parameters):
    """Stores input, output, a cotangent and every gradient."""
    dy = torch.randn_like(y)
    grads = torch.autograd.grad(y, [x, *parameters.values()], dy)
    out.update({f"{case}.x": x.detach().numpy(), f"{case}.y": y.detach().numpy(), f"{case}.dy": dy.numpy(), f"{case}.dx": grads[0].numpy()})
    for (name, p), g in zip(parameters.items(), grads[1:]):
        out[f"{case}.{name}"] = p.detach().numpy()
        out[f"{case}.d.{name}"] = g.numpy()


def linear_names(prefix, l):
    return {prefix + ".weight": l.weight, prefix + ".bias": l.bias}


# An MLP with batch norms (training), then the same served with the running statistics of that one step.
widths = [7, 12, 9, 2]
linears = [torch.nn.Linear(a, b) for a, b in zip(widths, widths[1:])]
norms = [torch.nn.BatchNorm1d(w) for w in widths[1:-1]]
for n in norms:
    torch.nn.init.normal_(n.weight)
    torch.nn.init.normal_(n.bias)
x = torch.randn(11, 7, requires_grad=True)


def mlp(h):
    for l, n in zip(linears, norms):
        h = F.silu(n(l(h)))
    return linears[-1](h)


parameters = {}
for i, (l, n) in enumerate(zip(linears, norms)):
    parameters |= linear_names(f"hidden.{i}.linear", l)
    parameters |= {f"hidden.{i}.norm.weight": n.weight, f"hidden.{i}.norm.bias": n.bias}
parameters |= linear_names("last.linear", linears[-1])
keep("mlp", x, mlp(x), parameters)
for n in norms:
    n.eval()
out["mlp.served"] = mlp(x).detach().numpy()

# Dense with a layer norm.
l, n = torch.nn.Linear(6, 10), torch.nn.LayerNorm(10)
torch.nn.init.normal_(n.weight)
torch.nn.init.normal_(n.bias)
x = torch.randn(5, 6, requires_grad=True)
keep("dense_layer_norm", x, F.gelu(n(l(x))), linear_names("linear", l) | {"norm.weight": n.weight, "norm.bias": n.bias})

# DCN-v2 from its formula: x_{i+1} = x_0 * (W_i x_i + b_i) + x_i.
layers = [torch.nn.Linear(8, 8) for _ in range(3)]
x = torch.randn(6, 8, requires_grad=True)
h = x
for l in layers:
    h = x * l(h) + h
parameters = {}
for i, l in enumerate(layers):
    parameters |= linear_names(f"layers.{i}.linear", l)
keep("cross", x, h, parameters)

# Experts: two-layer networks of one kind, side by side.
experts = [[torch.nn.Linear(5, 7), torch.nn.Linear(7, 3)] for _ in range(3)]
x = torch.randn(4, 5, requires_grad=True)
parameters = {}
for e, (a, b) in enumerate(experts):
    parameters |= linear_names(f"experts.{e}.hidden.0.linear", a) | linear_names(f"experts.{e}.last.linear", b)
keep("experts", x, torch.cat([b(torch.tanh(a(x))) for a, b in experts], 1), parameters)

# Transformer blocks as nn.TransformerEncoderLayer has them: norm after (post) or before (pre), causal or not, on jagged sequences.
lengths = [5, 0, 9, 1]
for case, first, causal, activation in [("post", False, False, "relu"), ("pre", True, True, "gelu")]:
    block = torch.nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, activation=activation, batch_first=True, norm_first=first)
    for n in [block.norm1, block.norm2]:
        torch.nn.init.normal_(n.weight, 1, 0.3)
        torch.nn.init.normal_(n.bias)
    torch.nn.init.normal_(block.self_attn.in_proj_bias)
    torch.nn.init.normal_(block.self_attn.out_proj.bias)
    x = torch.randn(sum(lengths), 16, requires_grad=True)
    pieces = []
    for piece in torch.split(x, lengths):
        if len(piece):
            mask = torch.triu(torch.full((len(piece), len(piece)), -torch.inf), 1) if causal else None
            pieces.append(block(piece[None], src_mask=mask)[0])
    keep("transformer_" + case, x, torch.cat(pieces), dict(block.named_parameters()))
out["transformer.lengths"] = np.array(lengths)

safetensors_writer.write(
    pathlib.Path(__file__).with_suffix(".safetensors"),
    out,
    {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
)
