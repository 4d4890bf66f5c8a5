#!/usr/bin/env python3
"""Golden vectors for HarmonRank's ensemble, written in PyTorch from its equations: writes harmonrank.safetensors beside this script.

    python3 harmonrank.py
"""
import pathlib
import platform

import numpy as np
import torch

import safetensors_writer

torch.manual_seed(3)
out = {}


def case(name, B, M, P, d, heads, gate, logit=False, sigmoid=False):
    p = {
        "token.weight": torch.randn(M, d), "token.bias": torch.randn(M, d),
        "query": torch.randn(d, d) / d**0.5, "key": torch.randn(d, d) / d**0.5,
        "value": torch.randn(d, d) / d**0.5, "out": torch.randn(d, d) / d**0.5,
        "profile_query": torch.randn(d, P) / P**0.5, "cross_key": torch.randn(d, d) / d**0.5,
        "cross_value": torch.randn(d, d) / d**0.5, "score.weight": torch.randn(d), "score.bias": torch.randn(1),
        "gate.weight": torch.randn(M, P), "gate.bias": torch.randn(M),
    }
    p = {k: v.double().requires_grad_() for k, v in p.items()}
    x = (torch.rand(B, M) * 0.8 + 0.1 if logit else torch.randn(B, M)).double().requires_grad_()
    u = torch.randn(B, P).double().requires_grad_()
    ds = torch.randn(B).double()
    scores = torch.log(x / (1 - x)) if logit else x
    e = scores[:, :, None] * p["token.weight"] + p["token.bias"]
    split = lambda t: t.view(B, M, heads, d // heads).transpose(1, 2)
    q, k, v = (split(e @ p[n].T) for n in ("query", "key", "value"))
    attention = torch.softmax(q @ k.transpose(2, 3) / (d // heads) ** 0.5, -1)
    r = e + (attention @ v).transpose(1, 2).reshape(B, M, d) @ p["out"].T
    a = torch.softmax(torch.einsum("bd,bmd->bm", u @ p["profile_query"].T, r @ p["cross_key"].T) / d**0.5, -1)
    s = torch.einsum("bm,bmd->bd", a, r @ p["cross_value"].T) @ p["score.weight"] + p["score.bias"]
    weigh = {"softmax": lambda t: torch.softmax(t, -1), "sigmoid": torch.sigmoid, "softplus": torch.nn.functional.softplus}[gate]
    s = s + (weigh(u @ p["gate.weight"].T + p["gate.bias"]) * scores).sum(-1)
    s = torch.sigmoid(s) if sigmoid else s
    s.backward(ds)
    tensors = {"x": x, "u": u, "s": s, "ds": ds, "dx": x.grad, "du": u.grad} | p | {f"gradient.{k}": v.grad for k, v in p.items()}
    for k, v in tensors.items():
        out[f"{name}.{k}"] = np.ascontiguousarray(v.detach().numpy())


case("plain", 5, 4, 6, 8, 2, "softmax")
case("probabilities", 3, 3, 2, 6, 1, "sigmoid", logit=True, sigmoid=True)
case("softplus", 2, 5, 3, 4, 4, "softplus")

safetensors_writer.write(
    pathlib.Path(__file__).with_suffix(".safetensors"),
    out,
    {"script": "tests/golden/harmonrank.py", "python": platform.python_version(), "torch": torch.__version__},
)
