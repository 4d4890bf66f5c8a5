#!/usr/bin/env python3
"""Golden vectors for SASRec, made with PyTorch's own encoder layers in double: writes sasrec.safetensors beside this script.

    python3 sasrec.py

Two pre-norm blocks under a causal mask, sequence by sequence, positions counted from the end; the loss is cross-entropy of the next
item against sampled ones, whose logits are corrected by log q and left out where they are the next item itself. Gradients of
everything by autograd.
"""
import pathlib
import platform

import numpy as np
import torch

import safetensors_writer

torch.manual_seed(20180826)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
items, width, longest, heads, hidden = 13, 8, 6, 2, 12
lengths = [5, 0, 1, 6, 2]
offsets = np.concatenate([[0], np.cumsum(lengths)])
ids = torch.randint(items, (int(offsets[-1]),))
negatives = torch.randint(items, (9,))
log_q = torch.log(torch.rand(9))

table, places = torch.nn.Embedding(items, width), torch.nn.Embedding(longest, width)
blocks = torch.nn.ModuleList(
    torch.nn.TransformerEncoderLayer(width, heads, hidden, dropout=0.0, activation="relu", batch_first=True, norm_first=True)
    for _ in range(2))
norm = torch.nn.LayerNorm(width)
for name, p in list(blocks.named_parameters()) + list(norm.named_parameters()):
    if p.dim() == 1:
        torch.nn.init.normal_(p, 1.0 if name.endswith("weight") else 0.0, 0.5)
parameters = {"items.weight": table.weight, "positions.weight": places.weight,
              **{f"blocks.{n}": p for n, p in blocks.named_parameters()}, **{f"norm.{n}": p for n, p in norm.named_parameters()}}


def states(own):
    x = width**0.5 * table(own) + places(torch.arange(longest - len(own), longest))
    mask = torch.triu(torch.full((len(own), len(own)), float("-inf")), 1)
    for block in blocks:
        x = block(x[None], src_mask=mask)[0]
    return norm(x)


h = torch.cat([states(ids[offsets[b]:offsets[b + 1]]) for b in range(len(lengths)) if lengths[b] > 0])
losses = []
for b, length in enumerate(lengths):
    own = ids[offsets[b]:offsets[b + 1]]
    if length < 2:
        continue
    for state, following in zip(states(own[:-1]), own[1:]):
        z = table.weight[negatives] @ state - log_q
        z = torch.where(negatives == following, torch.full_like(z, float("-inf")), z)
        losses.append(torch.logsumexp(torch.cat([(table.weight[following] @ state)[None], z]), 0) - table.weight[following] @ state)
loss = torch.stack(losses).mean()
loss.backward()

out = {"ids": ids.numpy(), "offsets": offsets.astype(np.int64), "negatives": negatives.numpy(), "log_q": log_q.numpy(),
       "h": h.detach().numpy(), "loss": np.array([loss.item()])}
out.update({n: p.detach().numpy() for n, p in parameters.items()})
out.update({f"d.{n}": p.grad.numpy() for n, p in parameters.items()})
safetensors_writer.write(
    pathlib.Path(__file__).with_suffix(".safetensors"),
    out,
    {"script": "tests/golden/sasrec.py", "python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
)
