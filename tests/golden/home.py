#!/usr/bin/env python3
"""Golden vectors for PLE and HoME, made with PyTorch in double: writes home.safetensors beside this script.

    python3 home.py

Every expert, gate and low-rank gate is a torch.nn module of its own, and the mixtures are written as the papers write them (PLE:
RecSys 2020, equations 2 to 9; HoME: arXiv 2408.05430, equations 4 to 11); only the file concatenates their weights.
"""
import pathlib
import platform

import numpy as np
import torch
import torch.nn.functional as F

import safetensors_writer

torch.manual_seed(20241128)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
out = {}


def keep(name, value):
    out[name] = value.detach().numpy().copy()


def keep_stacked(prefix, name, tensors):
    """Weights concatenated along the output, and their gradients."""
    if not tensors:
        return
    keep(f"{prefix}.{name}", torch.cat(list(tensors)))
    keep(f"{prefix}.d.{name}", torch.cat([t.grad for t in tensors]))


class Expert(torch.nn.Module):
    """An MLP; with `home` its last layer is normalised over the batch, then silu."""

    def __init__(self, inputs, hidden, outputs, home):
        super().__init__()
        self.home = home
        self.first = torch.nn.Linear(inputs, hidden, bias=not home) if hidden else None
        self.last = torch.nn.Linear(hidden or inputs, outputs, bias=not home)
        if home:
            self.norm = torch.nn.BatchNorm1d(outputs)
            torch.nn.init.normal_(self.norm.weight, 1, 0.3)
            torch.nn.init.normal_(self.norm.bias, 0, 0.3)

    def forward(self, x):
        act = F.silu if self.home else torch.relu
        if self.first is not None:
            x = act(self.first(x))
        x = self.last(x)
        return F.silu(self.norm(x)) if self.home else act(x)


def keep_experts(prefix, inner, experts):
    at = f"{inner}.experts"
    keep_stacked(prefix, f"{at}.weight", [e.last.weight for e in experts])
    if experts[0].last.bias is not None:
        keep_stacked(prefix, f"{at}.bias", [e.last.bias for e in experts])
    if experts[0].first is not None:
        keep_stacked(prefix, f"{at}.hidden.0.weight", [e.first.weight for e in experts])
        if experts[0].first.bias is not None:
            keep_stacked(prefix, f"{at}.hidden.0.bias", [e.first.bias for e in experts])
    if experts[0].home:
        keep_stacked(prefix, f"{at}.norm.weight", [e.norm.weight for e in experts])
        keep_stacked(prefix, f"{at}.norm.bias", [e.norm.bias for e in experts])


def weighted(gates, experts):
    return sum(gates[:, i : i + 1] * e for i, e in enumerate(experts))


def finish(prefix, run, x, norms):
    y = run()
    dy = torch.randn_like(y)
    (y * dy).sum().backward()
    for name, value in {"x": x, "y": y, "dy": dy, "dx": x.grad}.items():
        keep(f"{prefix}.{name}", value)
    for m in norms:
        m.eval()
    keep(f"{prefix}.served", run())
    for m in norms:
        m.train()


def ple(prefix, rows, inputs, tasks, levels):
    """levels: (outputs, hidden, own experts per task, shared experts)"""
    x = torch.randn(rows, inputs, requires_grad=True)
    built, width = [], inputs
    for l, (outputs, hidden, own, shared) in enumerate(levels):
        last = l + 1 == len(levels)
        level = {
            "own": [[Expert(width, hidden, outputs, False) for _ in range(own[t])] for t in range(tasks)],
            "shared": [Expert(width, hidden, outputs, False) for _ in range(shared)],
            "gates": [torch.nn.Linear(width, own[t] + shared, bias=False) for t in range(tasks)],
        }
        if not last:
            level["shared_gate"] = torch.nn.Linear(width, sum(own) + shared, bias=False)
        built.append(level)
        width = outputs

    def run():
        task_in, shared_in = [x] * tasks, x
        for level in built:
            own = [[e(task_in[t]) for e in level["own"][t]] for t in range(tasks)]
            shared = [e(shared_in) for e in level["shared"]]
            task_out = [weighted(F.softmax(level["gates"][t](task_in[t]), 1), own[t] + shared) for t in range(tasks)]
            if "shared_gate" in level:
                everyone = [e for o in own for e in o] + shared
                shared_in = weighted(F.softmax(level["shared_gate"](shared_in), 1), everyone)
            task_in = task_out
        return torch.cat(task_in, 1)

    finish(prefix, run, x, [])
    for l, level in enumerate(built):
        experts = [e for o in level["own"] for e in o] + level["shared"]
        keep_experts(prefix, f"levels.{l}", experts)
        gates = [g.weight for g in level["gates"]] + ([level["shared_gate"].weight] if "shared_gate" in level else [])
        keep_stacked(prefix, f"levels.{l}.gates.weight", gates)


class FeatureGate(torch.nn.Module):
    def __init__(self, width, loras):
        super().__init__()
        self.down = torch.nn.ModuleList(torch.nn.Linear(width, width // loras, bias=False) for _ in range(loras))
        self.up = torch.nn.ModuleList(torch.nn.Linear(width // loras, width, bias=False) for _ in range(loras))
        self.gate = torch.nn.Linear(width, loras)

    def forward(self, v):
        a = F.softmax(self.gate(v), 1)
        return v * sum(a[:, l : l + 1] * (2 * torch.sigmoid(up(down(v)))) for l, (down, up) in enumerate(zip(self.down, self.up)))


def home(prefix, rows, inputs, categories, h1, h2, k1, k2, hidden=0, masks=True, features=True, selves=True, gate_bias=False):
    """k1: experts of (shared, each category); k2: of (shared, each category, each task)"""
    count, tasks = max(categories) + 1, len(categories)
    x = torch.randn(rows, inputs, requires_grad=True)
    groups1 = [k1[0]] + [k1[1]] * count
    groups2 = [k2[0]] + [k2[1]] * count + [k2[2]] * tasks
    experts1 = [[Expert(inputs, hidden, h1, True) for _ in range(k)] for k in groups1]
    experts2 = [[Expert(h1, hidden, h2, True) for _ in range(k)] for k in groups2]
    features1 = [FeatureGate(inputs, 2) for _ in groups1] if features else None
    features2 = [FeatureGate(h1, 2) for _ in groups2] if features else None
    sees1 = [list(range(1 + count)) if g == 0 or not masks else [0, g] for g in range(1 + count)]
    sees2 = [[0, 1 + c, 1 + count + t] if masks else list(range(len(groups2))) for t, c in enumerate(categories)]
    gates1 = [torch.nn.Linear(inputs, sum(groups1[g] for g in s), bias=gate_bias) for s in sees1]
    gates2 = [torch.nn.Linear(2 * h1, sum(groups2[g] for g in s), bias=gate_bias) for s in sees2]
    selves1 = [torch.nn.Linear(inputs, k, bias=gate_bias) for k in groups1] if selves else None
    selves2 = [torch.nn.Linear(2 * h1, k2[2], bias=gate_bias) for _ in range(tasks)] if selves else None

    def self_gate(layer, z):
        logits = layer(z)
        return torch.sigmoid(logits) if logits.shape[1] == 1 else F.softmax(logits, 1)

    def run():
        a = []
        for g, experts in enumerate(experts1):
            u = features1[g](x) if features else x
            a.append([e(u) for e in experts])
        m = []
        for g in range(1 + count):
            value = weighted(F.softmax(gates1[g](x), 1), [e for s in sees1[g] for e in a[s]])
            if selves:
                value = value + weighted(self_gate(selves1[g], x), a[g])
            m.append(value)
        a2 = []
        for g, experts in enumerate(experts2):
            source = m[g] if g <= count else m[1 + categories[g - 1 - count]]
            u = features2[g](source) if features else source
            a2.append([e(u) for e in experts])
        h = []
        for t, c in enumerate(categories):
            z = torch.cat([m[1 + c], m[0]], 1)
            value = weighted(F.softmax(gates2[t](z), 1), [e for s in sees2[t] for e in a2[s]])
            if selves:
                value = value + weighted(self_gate(selves2[t], z), a2[1 + count + t])
            h.append(value)
        return torch.cat(h, 1)

    finish(prefix, run, x, [e for o in experts1 + experts2 for e in o])
    for level, experts, features_of, gates, self_gates in (("meta", experts1, features1, gates1, selves1),
                                                           ("task", experts2, features2, gates2, selves2)):
        keep_experts(prefix, level, [e for o in experts for e in o])
        for kind, layers in (("gates", gates), ("self_gates", self_gates or [])):
            keep_stacked(prefix, f"{level}.{kind}.weight", [g.weight for g in layers])
            if gate_bias:
                keep_stacked(prefix, f"{level}.{kind}.bias", [g.bias for g in layers])
        for g, f in enumerate(features_of or []):
            at = f"{level}.feature_gates.{g}"
            keep_stacked(prefix, f"{at}.down.weight", [d.weight for d in f.down])
            keep_stacked(prefix, f"{at}.up.weight", [u.weight for u in f.up])
            keep_stacked(prefix, f"{at}.gate.weight", [f.gate.weight])
            keep_stacked(prefix, f"{at}.gate.bias", [f.gate.bias])


ple("ple", rows=11, inputs=7, tasks=3, levels=[(6, 5, [1, 2, 1], 2), (4, 0, [2, 2, 2], 1)])
home("full", rows=14, inputs=8, categories=[0, 1, 0], h1=6, h2=5, k1=(2, 1), k2=(1, 2, 1))
home("open", rows=13, inputs=6, categories=[0, 0, 1], h1=4, h2=3, k1=(1, 2), k2=(1, 1, 2), hidden=5, masks=False, gate_bias=True)
home("bare", rows=12, inputs=5, categories=[0, 1], h1=4, h2=3, k1=(1, 1), k2=(1, 1, 1), features=False, selves=False)

versions = {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}
safetensors_writer.write(pathlib.Path(__file__).with_name("home.safetensors"), out, versions)
print(len(out), "tensors")
