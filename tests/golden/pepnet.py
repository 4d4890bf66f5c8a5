#!/usr/bin/env python3
"""Golden vectors for personalisation gates and adapters, made with PyTorch in double: writes pepnet.safetensors beside this script.

    python3 pepnet.py

Written from the papers' equations with torch.nn modules and autograd; stop-gradients are `detach()`. Towers, gates and adapters are
separate modules; only the file concatenates them.
"""
import pathlib
import platform

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import safetensors_writer

torch.manual_seed(20240610)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
out = {}


def keep(prefix, **tensors):
    for name, value in tensors.items():
        out[f"{prefix}.{name.replace('__', '.')}"] = value.detach().numpy().copy()


def keep_parameter(prefix, name, parts, attribute):
    """A parameter made of several modules', one below the other, and its gradient."""
    values = [getattr(p, attribute) if attribute else p for p in parts]
    out[f"{prefix}.{name}"] = torch.cat([v.detach() for v in values]).numpy().copy()
    out[f"{prefix}.d.{name}"] = torch.cat([v.grad if v.grad is not None else torch.zeros_like(v) for v in values]).numpy().copy()


def keep_linear(prefix, name, *parts):
    keep_parameter(prefix, f"{name}.weight", parts, "weight")
    keep_parameter(prefix, f"{name}.bias", parts, "bias")


class GateNu(nn.Module):
    def __init__(self, inputs, hidden, outputs, gamma=2.0):
        super().__init__()
        self.hidden, self.output, self.gamma = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs), gamma

    def forward(self, x):
        return self.gamma * torch.sigmoid(self.output(torch.relu(self.hidden(x))))


# Gate NU alone.
x = torch.randn(9, 7, requires_grad=True)
gate = GateNu(7, 11, 5, 3.0)
y = gate(x)
dy = torch.randn_like(y)
y.backward(dy)
keep("gate_nu", x=x, y=y, dy=dy, dx=x.grad)
keep_linear("gate_nu", "hidden", gate.hidden)
keep_linear("gate_nu", "output", gate.output)

# EPNet, then PPNet with three tasks and two layers, heads of two outputs, one loss through both.
for name, sees, heads in [("pepnet", True, True), ("plain", False, False)]:
    tasks, widths = 3, [9, 5]
    e, d, p = (torch.randn(8, n, requires_grad=True) for n in (10, 3, 4))
    ep = GateNu((10 if sees else 0) + 3, 6, 10)
    o = ep(torch.cat([d, e.detach()], 1) if sees else d) * e
    o.retain_grad()
    gates = [GateNu(4 + 10, 7, tasks * w) for w in widths]
    towers = [[nn.Linear(i, w) for _ in range(tasks)] for i, w in zip([10] + widths, widths)]
    last = [nn.Linear(widths[-1], 2) for _ in range(tasks)]
    at = [o] * tasks
    for l, w in enumerate(widths):
        delta = gates[l](torch.cat([p, o.detach()], 1)).reshape(8, tasks, w)
        at = [delta[:, t] * torch.relu(towers[l][t](at[t])) for t in range(tasks)]
    y = torch.cat([last[t](at[t]) if heads else at[t] for t in range(tasks)], 1)
    dy = torch.randn_like(y)
    y.backward(dy)
    keep(name, e=e, d=d, p=p, o=o, y=y, dy=dy, de=e.grad, dd=d.grad, dp=p.grad, do=o.grad)
    keep_linear(f"{name}.ep", "gate.hidden", ep.hidden)
    keep_linear(f"{name}.ep", "gate.output", ep.output)
    for l in range(2):
        keep_linear(f"{name}.pp", f"gates.{l}.hidden", gates[l].hidden)
        keep_linear(f"{name}.pp", f"gates.{l}.output", gates[l].output)
        keep_linear(f"{name}.pp", f"towers.{l}", *towers[l])
    if heads:
        keep_linear(f"{name}.pp", "head", *last)

# LHUC: a row per user; -1 leaves its row alone.
ids = torch.tensor([3, 0, -1, 3, 5, 0, 3])
table = (0.7 * torch.randn(6, 9)).requires_grad_()
x = torch.randn(7, 9, requires_grad=True)
a = 2 * torch.sigmoid(table[ids.clamp(min=0)])
y = x * torch.where((ids >= 0)[:, None], a, torch.ones_like(a))
dy = torch.randn_like(y)
y.backward(dy)
keep("lhuc", ids=ids, x=x, y=y, dy=dy, dx=x.grad, weight=table, d__weight=table.grad)

# FiLM.
for name, plus_one in [("film", 1.0), ("film_plain", 0.0)]:
    x, z = torch.randn(6, 7, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    f = nn.Linear(4, 14)
    scale, shift = f(z).chunk(2, 1)
    y = (plus_one + scale) * x + shift
    dy = torch.randn_like(y)
    y.backward(dy)
    keep(name, x=x, z=z, y=y, dy=dy, dx=x.grad, dz=z.grad)
    keep_linear(name, "linear", f)

# LoRA.
x = torch.randn(6, 9, requires_grad=True)
base, down, up = nn.Linear(9, 7), nn.Linear(9, 3, bias=False), nn.Linear(3, 7, bias=False)
y = base(x) + 6.0 / 3 * up(down(x))
dy = torch.randn_like(y)
y.backward(dy)
keep("lora", x=x, y=y, dy=dy, dx=x.grad)
keep_linear("lora", "base_layer", base)
keep_parameter("lora", "lora_A.weight", [down], "weight")
keep_parameter("lora", "lora_B.weight", [up], "weight")

# Gated adapters: base, personal adapter (4 users), group adapter (3 groups; -1: none).
rows, d, o, r, s = 7, 6, 5, 2, 0.25
users, groups = torch.tensor([2, 0, 2, 3, -1, 0, 2]), torch.tensor([0, 1, -1, 0, 2, 1, 1])
x = torch.randn(rows, d, requires_grad=True)
base, hidden, output = nn.Linear(d, o), nn.Linear(d, 8), nn.Linear(8, 3)
banks = [[[torch.randn(r, n).requires_grad_() for n in (d, o)] for _ in range(count)] for count in (4, 3)]
g = F.softmax(output(torch.relu(hidden(x))), 1)
ys = []
for b in range(rows):
    row = g[b, 0] * torch.relu(base(x[b]))
    for slot, ids in enumerate([users, groups]):
        if ids[b] >= 0:
            A, B = banks[slot][int(ids[b])]
            row = row + g[b, 1 + slot] * s * (B.T @ (A @ x[b]))
    ys.append(row)
y = torch.stack(ys)
dy = torch.randn_like(y)
y.backward(dy)
keep("adapters", users=users, groups=groups, x=x, y=y, dy=dy, dx=x.grad, gates=g)
keep_linear("adapters", "base", base)
keep_linear("adapters", "gate.hidden", hidden)
keep_linear("adapters", "gate.output", output)
for slot, bank in enumerate(banks):
    zero = lambda t: t.grad if t.grad is not None else torch.zeros_like(t)
    out[f"adapters.adapters.{slot}.weight"] = np.stack([np.concatenate([m.detach().numpy().ravel() for m in pair]) for pair in bank])
    out[f"adapters.d.adapters.{slot}.weight"] = np.stack([np.concatenate([zero(m).numpy().ravel() for m in pair]) for pair in bank])

# Group-gated FFN on three sequences: own FFN, four group FFNs, gate on [mean of the positions, user embedding]; balance loss.
for name, scaled, padded in [("group", False, 0), ("group_scaled", True, 9)]:
    dm, du, n, alpha = 6, 3, 4, 0.1
    offsets = [0, 5, 6, 13]
    x, u = torch.randn(13, dm, requires_grad=True), torch.randn(3, du, requires_grad=True)
    ffn = lambda: (nn.Linear(dm, dm), nn.Linear(dm, dm))
    own, experts, gate = ffn(), [ffn() for _ in range(n)], nn.Linear(dm + du, n)
    run = lambda f, v: f[1](torch.relu(f[0](v)))
    previous = torch.tensor([0.4, 0.1, 0.3, 0.2])
    rs, ys, picks = [], [], []
    for b in range(3):
        seq = x[offsets[b]:offsets[b + 1]]
        length = padded or len(seq)
        rep = torch.cat([seq.sum(0) / length, u[b]])
        r_ = F.softmax(gate(rep), 0)
        pick = int(r_.argmax())
        branch = run(experts[pick], seq)
        ys.append(run(own, seq) + (r_[pick] * branch if scaled else branch))
        rs.append(r_)
        picks.append(pick)
    y, r_ = torch.cat(ys), torch.stack(rs)
    balance = sum(alpha * n * previous[picks[b]] * r_[b, picks[b]] for b in range(3))
    dy = torch.randn_like(y)
    ((y * dy).sum() + balance).backward()
    keep(name, x=x, u=u, offsets=torch.tensor(offsets), y=y, dy=dy, dx=x.grad, du=u.grad, gates=r_, picks=torch.tensor(picks),
         previous=previous, balance=balance)
    keep_linear(name, "gate", gate)
    for label, f in [("own", own)] + [(f"groups.{i}", f) for i, f in enumerate(experts)]:
        keep_linear(name, f"{label}.hidden.0.linear", f[0])
        keep_linear(name, f"{label}.last.linear", f[1])

safetensors_writer.write(
    pathlib.Path(__file__).with_suffix(".safetensors"),
    out,
    {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
)
