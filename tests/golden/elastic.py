#!/usr/bin/env python3
"""Golden vectors for dispatcher attention and the interest memory, made with PyTorch in double: writes elastic.safetensors beside this
script.

    python3 elastic.py

Dispatcher blocks are two torch.nn.MultiheadAttention, norms and a network, user by user; the causal one calls them once for every token,
with the tokens up to it. The memory scores all slots and takes torch.topk. A stack is the whole body of the model: blocks with their norms
first, a last norm, and a memory that is added to the states (causal) or makes the first experts (looking ahead). Gradients are autograd's.
"""
import pathlib
import platform

import numpy as np
import torch
from torch import nn

import safetensors_writer

torch.manual_seed(20250821)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
out = {}


def keep(prefix, module):
    for name, p in module.named_parameters():
        out[f"{prefix}.{name}"] = p.detach().numpy().copy()
        out[f"{prefix}.d.{name}"] = (torch.zeros_like(p) if p.grad is None else p.grad).numpy().copy()


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.aggregate = nn.MultiheadAttention(width, heads, batch_first=True)
        self.dispatch = nn.MultiheadAttention(width, heads, batch_first=True)
        for m in (self.aggregate, self.dispatch):
            nn.init.normal_(m.in_proj_bias, std=0.5)
            nn.init.normal_(m.out_proj.bias, std=0.5)

    def forward(self, x, experts):
        if len(x) == 0:
            return x, self.aggregate.out_proj.bias.expand_as(experts)
        p = self.aggregate(experts[None], x[None], x[None])[0][0]
        return self.dispatch(x[None], p[None], p[None])[0][0], p

    def causal(self, x, experts):
        y = []
        for t in range(len(x)):
            p = self.aggregate(experts[None], x[None, :t + 1], x[None, :t + 1])[0]
            y.append(self.dispatch(x[None, t:t + 1], p, p)[0][0, 0])
        return (torch.stack(y) if y else x), None


class Block(nn.Module):
    def __init__(self, width, heads, hidden, causal, norm_first=False):
        super().__init__()
        self.attention = Attention(width, heads)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.causal, self.norm_first = causal, norm_first

    def forward(self, x, experts):
        attend = self.attention.causal if self.causal else self.attention
        if self.norm_first:
            y, p = attend(self.norm1(x), experts)
            h = x + y
            return h + self.linear2(torch.relu(self.linear1(self.norm2(h)))), p
        y, p = attend(x, experts)
        h = self.norm1(x + y)
        return self.norm2(h + self.linear2(torch.relu(self.linear1(h)))), p


lengths = [3, 0, 1, 9, 5]
offsets = np.concatenate([[0], np.cumsum(lengths)])
width, heads, k, hidden = 6, 2, 3, 10
x = torch.randn(offsets[-1], width, requires_grad=True)
experts = torch.randn(len(lengths) * k, width, requires_grad=True)
mask = torch.ones(offsets[-1], dtype=torch.bool)
mask[[1, 3, 7, 10]] = False  # user 2 has nothing left
dz, dnext = torch.randn(offsets[-1], width), torch.randn(len(lengths) * k, width)
out.update(x=x.detach().numpy(), experts=experts.detach().numpy(), mask=mask.numpy().astype(np.uint8),
           offsets=offsets.astype(np.int64), dz=dz.numpy(), dnext=dnext.numpy())
for causal in (False, True):
    name = "causal" if causal else "block"
    block = Block(width, heads, hidden, causal)
    x.grad = experts.grad = None
    z, after = torch.zeros(offsets[-1], width), []
    for u, (first, last) in enumerate(zip(offsets[:-1], offsets[1:])):
        shown = torch.arange(first, last)[mask[first:last]]
        y, p = block(x[shown], experts[u * k:(u + 1) * k])
        z = z.index_put((shown,), y)
        after.append(p)
    loss = (z * dz).sum()
    if not causal:
        after = torch.cat(after)
        loss = loss + (after * dnext).sum()
        out[f"{name}.next"] = after.detach().numpy()
    loss.backward()
    out.update({f"{name}.z": z.detach().numpy(), f"{name}.dx": x.grad.numpy().copy(), f"{name}.dexperts": experts.grad.numpy().copy()})
    keep(name, block)

users, m, width, inputs, query, k, heads, temperature = 7, 6, 5, 4, 6, 4, 2, 0.7
x = torch.randn(users, inputs, requires_grad=True)
out["memory.x"] = x.detach().numpy()


class Memory(nn.Module):
    def __init__(self, inputs, width, query, m, heads):
        super().__init__()
        self.query = nn.Linear(inputs, heads * query, bias=False)
        self.keys1 = nn.Parameter(torch.randn(heads * m, query // 2))
        self.keys2 = nn.Parameter(torch.randn(heads * m, query // 2))
        self.bank = nn.Embedding(m * m, width)
        self.m, self.heads = m, heads

    def halves(self, x):
        q = self.query(x).view(len(x), self.heads, 2, -1)
        for h in range(self.heads):
            own = slice(h * self.m, (h + 1) * self.m)
            yield q[:, h, 0] @ self.keys1[own].T, q[:, h, 1] @ self.keys2[own].T

    def forward(self, x, reads, mode, temperature):
        """[n, width] summed, or [n, reads, width], and the slots that were read."""
        rows, slots = [], []
        for s1, s2 in self.halves(x):
            s, at = torch.topk((s1[:, :, None] + s2[:, None, :]).view(len(x), self.m**2), reads // self.heads)
            slots.append(at)
            rows.append(torch.softmax(s / temperature, -1)[:, :, None] * self.bank(at))
        y = torch.cat(rows, 1)
        return (reads // self.heads * y if mode == "slots" else y.sum(1)), torch.cat(slots, 1)


memory = Memory(inputs, width, query, m, heads)
for mode in ("slots", "sum"):
    memory.zero_grad()
    x.grad = None
    y, slots = memory(x, k, mode, temperature)
    y = y.reshape(-1, width)
    dy = torch.randn_like(y)
    y.backward(dy)
    out.update({f"memory.{mode}.y": y.detach().numpy(), f"memory.{mode}.dy": dy.numpy(), f"memory.{mode}.dx": x.grad.numpy().copy(),
                f"memory.{mode}.choice": slots.numpy().astype(np.int32)})
    keep(f"memory.{mode}", memory)
memory.zero_grad()
x.grad = None
balance = sum(0.3 * m * (torch.softmax(s / temperature, -1).mean(0) ** 2).sum() for pair in memory.halves(x) for s in pair)
balance.backward()
out.update({"memory.balance": np.array([balance.item()]), "memory.balance.dx": x.grad.numpy().copy()})
keep("memory.balance", memory)


class Stack(nn.Module):
    def __init__(self, causal, width, count, k, m):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, 2, width, causal, norm_first=True) for _ in range(count))
        if causal or not m:
            self.experts = nn.Parameter(torch.randn(count * k if causal else k, width))
        self.norm = nn.LayerNorm(width)
        if m:
            self.memory = Memory(width, width, width, m, 2)
        self.causal, self.k, self.m = causal, k, m
        for name, p in self.named_parameters():
            if "norm" in name:
                nn.init.normal_(p, mean=1 if name.endswith("weight") else 0, std=0.3)

    def forward(self, x):
        if len(x) == 0:
            return x
        if not self.causal:
            p = self.memory(x.mean(0, keepdim=True), self.k, "slots", 1)[0][0] if self.m else self.experts
        for i, block in enumerate(self.blocks):
            x, after = block(x, self.experts[i * self.k:(i + 1) * self.k] if self.causal else p)
            p = after
        h = self.norm(x)
        return h + self.memory(h, 4, "sum", 1)[0] if self.causal and self.m else h


for causal in (True, False):
    for m in (0, 5):
        name = f"stack.{'causal' if causal else 'ahead'}.{m}"
        stack = Stack(causal, 6, 2, 4, m)
        x = torch.randn(offsets[-1], 6, requires_grad=True)
        y = torch.cat([stack(x[first:last]) for first, last in zip(offsets[:-1], offsets[1:])])
        dy = torch.randn_like(y)
        y.backward(dy)
        out.update({f"{name}.x": x.detach().numpy(), f"{name}.y": y.detach().numpy(), f"{name}.dy": dy.numpy(),
                    f"{name}.dx": x.grad.numpy().copy()})
        keep(name, stack)

safetensors_writer.write(pathlib.Path(__file__).with_suffix(".safetensors"), out,
                         {"torch": torch.__version__, "python": platform.python_version()})
