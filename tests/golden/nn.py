#!/usr/bin/env python3
"""Golden vectors for layers, losses and Adam, made with PyTorch in double: writes nn.safetensors beside this script.

    python3 nn.py
"""
import pathlib
import platform

import numpy as np
import torch
import torch.nn.functional as F

import safetensors_writer

torch.manual_seed(20240608)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
out = {}


def keep(**tensors):
    for name, value in tensors.items():
        out[name.replace("__", ".")] = value.detach().numpy().copy()


# Linear, forward and every gradient.
x = torch.randn(7, 5, requires_grad=True)
linear = torch.nn.Linear(5, 3)
y = linear(x)
dy = torch.randn(7, 3)
y.backward(dy)
keep(linear__x=x, linear__weight=linear.weight, linear__bias=linear.bias, linear__y=y, linear__dy=dy, linear__dx=x.grad,
     linear__dweight=linear.weight.grad, linear__dbias=linear.bias.grad)

# Linear layers with every activation in between.
x = torch.randn(33, 5, requires_grad=True)
widths, activations = [5, 19, 16, 7, 2], [torch.relu, F.silu, torch.sigmoid, lambda z: z]
layers = [torch.nn.Linear(a, b) for a, b in zip(widths, widths[1:])]
y = x
for layer, activation in zip(layers, activations):
    y = activation(layer(y))
dy = torch.randn(33, 2)
y.backward(dy)
keep(mlp__x=x, mlp__y=y, mlp__dy=dy, mlp__dx=x.grad)
for i, layer in enumerate(layers):
    keep(**{f"mlp.{i}.weight": layer.weight, f"mlp.{i}.bias": layer.bias, f"mlp.{i}.dweight": layer.weight.grad,
            f"mlp.{i}.dbias": layer.bias.grad})

# Embedding bags: an empty bag first, in the middle and last, repeated ids, a padding id, a bag of padding alone.
lengths = [0, 3, 1, 0, 5, 2, 8, 0]
offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
ids = torch.tensor([1, 1, 4, 9, 3, 0, 3, 1, 2, 3, 3, 9, 9, 9, 0, 3, 5, 1, 10])
table = torch.randn(11, 6)
dout = torch.randn(len(lengths), 6)
out |= {"bag.offsets": offsets, "bag.ids": ids.numpy()}
keep(bag__table=table, bag__dout=dout)
for mode in ["sum", "mean"]:
    for padding in [None, 3]:
        weight = table.clone().requires_grad_()
        y = F.embedding_bag(ids, weight, torch.tensor(offsets[:-1]), mode=mode, padding_idx=padding)
        y.backward(dout)
        name = mode if padding is None else mode + "_padding"
        keep(**{f"bag.{name}.out": y, f"bag.{name}.dtable": weight.grad})
weight = table.clone().requires_grad_()
y = F.embedding(ids, weight)
dlookup = torch.randn(len(ids), 6)
y.backward(dlookup)
keep(lookup__out=y, lookup__dout=dlookup, lookup__dtable=weight.grad)

# Binary cross-entropy of three tasks: weights (0 leaves a sample out) and task weights; far logits included.
z = torch.randn(40, 3) * 3
z[:6, 0] = torch.tensor([1e4, -1e4, 1e4, -1e4, 60.0, -60.0])
labels = (torch.rand(40, 3) < 0.3).double()
labels[:6, 0] = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 1.0])
labels[10:20, 1] = torch.rand(10)
weights = torch.rand(40, 3) * (torch.rand(40, 3) < 0.7)
weights[:6, 0] = 0.5
task_weights = torch.tensor([0.5, 2.0, 0.25])
keep(bce__logits=z, bce__labels=labels, bce__weights=weights, bce__task_weights=task_weights)
for name, w, tw in [("plain", torch.ones_like(z), torch.ones(3)), ("weighted", weights, task_weights)]:
    logits = z.clone().requires_grad_()
    losses = F.binary_cross_entropy_with_logits(logits, labels, weight=w, reduction="none").sum(0) / w.sum(0)
    total = (tw * losses).sum()
    total.backward()
    keep(**{f"bce.{name}.losses": losses, f"bce.{name}.total": total.reshape(1), f"bce.{name}.dlogits": logits.grad})

# Ten steps of Adam and AdamW on two parameters, of SparseAdam on a table: the parameters after each step.
weight0, bias0, table0 = torch.randn(5, 3), torch.randn(5), torch.randn(9, 4)
dweight, dbias = torch.randn(10, 5, 3), torch.randn(10, 5) * 1e-3
dbias[3] = 0
keep(adam__weight0=weight0, adam__bias0=bias0, adam__table0=table0, adam__dweight=dweight, adam__dbias=dbias)
optimizers = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.99), eps=1e-6),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.3),
}
for name, make in optimizers.items():
    weight, bias = weight0.clone().requires_grad_(), bias0.clone().requires_grad_()
    optimizer = make([weight, bias])
    after_weight, after_bias = [], []
    for step in range(10):
        weight.grad, bias.grad = dweight[step].clone(), dbias[step].clone()
        optimizer.step()
        after_weight.append(weight.detach().clone())
        after_bias.append(bias.detach().clone())
    keep(**{f"{name}.weight": torch.stack(after_weight), f"{name}.bias": torch.stack(after_bias)})
# SparseAdam does not correct the bias of epsilon (recops does, as Adam): told apart only where epsilon matters.
step_ids = torch.randint(0, 9, (10, 6))
dout = torch.randn(10, 6, 4)
weight = table0.clone().requires_grad_()
optimizer = torch.optim.SparseAdam([weight], lr=0.01, betas=(0.9, 0.95), eps=1e-15)
after = []
for step in range(10):
    optimizer.zero_grad()
    F.embedding(step_ids[step], weight, sparse=True).backward(dout[step])
    optimizer.step()
    after.append(weight.detach().clone())
keep(sparse_adam__ids=step_ids, sparse_adam__dout=dout, sparse_adam__table=torch.stack(after))

safetensors_writer.write(
    pathlib.Path(__file__).with_suffix(".safetensors"),
    out,
    {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
)
