#!/usr/bin/env python3
"""Golden vectors for attention, made with PyTorch in double precision: writes attention.safetensors beside this script.

    python3 attention.py
"""
import math
import pathlib
import platform

import numpy as np
import torch

import safetensors_writer

torch.manual_seed(20240608)
torch.set_default_dtype(torch.float64)
out = {}


def rounded(*shape):
    """Random numbers that float32 holds exactly, so that float and double tests read the same inputs."""
    return torch.randn(*shape).float().double()


def save(name, tensor):
    out[name] = tensor.detach().numpy().copy()


def split(x, heads):
    """[n, heads * d] -> [heads, n, d]"""
    return x.reshape(x.shape[0], heads, -1).transpose(0, 1)


def attention(name, n, length, heads, dk, dv, mask=None, bias=None, causal=False):
    q, k, v = (rounded(*s).requires_grad_() for s in [(n, heads * dk), (length, heads * dk), (length, heads * dv)])
    scores = split(q, heads) @ split(k, heads).transpose(1, 2) / math.sqrt(dk)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores.masked_fill(mask == 0, -math.inf)
    if causal:
        scores = scores.masked_fill(torch.ones(n, length).tril() == 0, -math.inf)
    y = (torch.softmax(scores, -1) @ split(v, heads)).transpose(0, 1).reshape(n, heads * dv)
    dout = rounded(n, heads * dv)
    y.backward(dout)
    prefix = f"sdpa_{name}_"
    save(prefix + "heads", torch.tensor([heads]))
    for key, tensor in [("q", q), ("k", k), ("v", v), ("dout", dout), ("out", y), ("dq", q.grad), ("dk", k.grad), ("dv", v.grad)]:
        save(prefix + key, tensor)
    save(prefix + "lse", torch.logsumexp(scores, -1).transpose(0, 1))
    if mask is not None:
        out[prefix + "mask"] = mask.numpy().astype(np.uint8)
    if bias is not None:
        save(prefix + "bias", bias.reshape(-1, length))
        save(prefix + "dbias", bias.grad.reshape(-1, length))


attention("plain", 5, 70, 2, 7, 6)
attention("masked", 20, 33, 2, 5, 3, mask=(torch.rand(33) < 0.6).to(torch.uint8))
attention("causal", 37, 37, 2, 8, 8, causal=True)
attention("biased", 18, 25, 2, 4, 6, bias=rounded(2, 18, 25).requires_grad_())


def multihead(name, n, length, embed, heads, kdim=None, vdim=None, bias=True, mask=False):
    layer = torch.nn.MultiheadAttention(embed, heads, bias=bias, kdim=kdim, vdim=vdim, batch_first=True)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(rounded(*p.shape) * 0.25)
    x = rounded(n, embed).requires_grad_()
    k = rounded(length, kdim or embed).requires_grad_()
    v = rounded(length, vdim or embed).requires_grad_() if vdim else k
    hidden = (torch.rand(length) < 0.4) if mask else None
    y, _ = layer(x[None], k[None], v[None], key_padding_mask=None if hidden is None else hidden[None])
    dout = rounded(n, embed)
    y[0].backward(dout)
    prefix = f"mha_{name}_"
    save(prefix + "heads", torch.tensor([heads]))
    for key, tensor in [("x", x), ("k", k), ("dout", dout), ("out", y[0]), ("dx", x.grad), ("dk", k.grad)]:
        save(prefix + key, tensor)
    if vdim:
        save(prefix + "v", v)
        save(prefix + "dv", v.grad)
    if mask:
        out[prefix + "mask"] = (~hidden).numpy().astype(np.uint8)
    for key, p in layer.named_parameters():
        save(prefix + "parameter." + key, p)
        save(prefix + "gradient." + key, p.grad)


multihead("packed", 3, 21, 16, 4)
multihead("separate", 18, 11, 12, 2, kdim=8, vdim=5, mask=True)
multihead("unbiased", 2, 40, 8, 2, bias=False)

here = pathlib.Path(__file__).resolve().parent
safetensors_writer.write(
    here / "attention.safetensors",
    out,
    {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()},
)
