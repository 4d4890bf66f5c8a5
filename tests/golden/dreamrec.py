#!/usr/bin/env python3
"""Golden vectors for the whole of DreamRec, made with PyTorch in double: writes dreamrec.safetensors beside this script.

    python3 dreamrec.py

The formulas of docs/diffusion.md in plain torch operations around PyTorch's own encoder layer, gradients by autograd; noise, steps and
dropped guidance drawn as docs/random.md says. `mlp1`, `mlp2`: the denoiser of one layer and of two; `float`, `double`: with the normals
that a model of this type draws, everything else in double. `x`: what is generated for each sequence, on the scale of the item table.
"""
import math
import pathlib
import platform

import numpy as np
import torch
import torch.nn.functional as F

import safetensors_writer
from philox import box_muller, philox, uniforms32, uniforms64, words

torch.manual_seed(20231031)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
items, width, longest, T, drop = 11, 6, 5, 12, 0.4
lengths = [4, 0, 1, 5, 3]
offsets = np.concatenate([[0], np.cumsum(lengths)])
ids = torch.randint(items, (int(offsets[-1]),))
rows, seed = [11, 3, 2**40 + 5, 0, 77], 2**60 + 9  # requests, and the seed of serving
step_seed, step_number = 3, 8                      # of training
NOISE, SAMPLER, INITIAL, TIMESTEP, MASK = 0, 1, 2, 4, 5

# The variance-preserving schedule, its rate growing from 0.1 to 10; entry 0 is clean data.
x = torch.linspace(1, 2 * T + 1, T)
beta = torch.cat([torch.zeros(1), 1 - torch.exp(-0.1 / T - (10 - 0.1) * x / (2 * T**2))])
alpha_bar = torch.cumprod(1 - beta, 0)
sigma = torch.sqrt(1 - alpha_bar)


def uniform(at):
    return uniforms64(words(at, 2))[0]


def normals(at, kind):
    n = width + width % 2
    return torch.tensor(box_muller(uniforms32(words(at, n)) if kind == "float" else uniforms64(words(at, 2 * n)))[:width])


def make(two_layers):
    block = torch.nn.TransformerEncoderLayer(width, 1, width, dropout=0.0, activation="relu", batch_first=True, norm_first=True)
    modules = {"encoder.items": torch.nn.Embedding(items, width), "encoder.positions": torch.nn.Embedding(longest, width),
               "encoder.blocks.0": block, "encoder.norm": torch.nn.LayerNorm(width),
               "denoiser.time.linear_1": torch.nn.Linear(width, 2 * width), "denoiser.time.linear_2": torch.nn.Linear(2 * width, width)}
    if two_layers:
        modules["denoiser.net.hidden.0.linear"] = torch.nn.Linear(3 * width, 2 * width)
    modules["denoiser.net.last.linear"] = torch.nn.Linear((2 if two_layers else 3) * width, width)
    p = {f"{m}.{n}": v for m, module in modules.items() for n, v in module.named_parameters()}
    p["denoiser.null_condition"] = torch.nn.Parameter(torch.randn(width))
    with torch.no_grad():
        for v in p.values():
            if v.dim() == 1:
                v += 0.3 * torch.randn(len(v))
        p["encoder.items.weight"] /= math.sqrt(width)
    return p, block


def states(p, block, own):
    x = math.sqrt(width) * p["encoder.items.weight"][own] + p["encoder.positions.weight"][longest - len(own):]
    mask = torch.triu(torch.full((len(own), len(own)), float("-inf")), 1)
    return F.layer_norm(block(x[None], src_mask=mask)[0], (width,), p["encoder.norm.weight"], p["encoder.norm.bias"])


def denoise(p, x, h, t):
    """x, h [width] of one row, t a number"""
    half = width // 2
    angles = t * torch.exp(-math.log(10000) * torch.arange(half) / (half - 1))
    apply = lambda name, v: F.linear(v, p[f"denoiser.{name}.weight"], p[f"denoiser.{name}.bias"])
    e = apply("time.linear_2", F.gelu(apply("time.linear_1", torch.cat([torch.sin(angles), torch.cos(angles)]))))
    v = torch.cat([x, h, e])
    if "denoiser.net.hidden.0.linear.weight" in p:
        v = F.gelu(apply("net.hidden.0.linear", v))
    return apply("net.last.linear", v)


def loss_of(p, block, kind, detach):
    # Random rows of a training step: numbered by place, keyed by seed and number of the step together.
    key = philox([step_number, 0, 0, 0], step_seed)
    key = key[0] << 32 | key[1]
    losses, steps, kept = [], [], []
    for b, length in enumerate(lengths):
        if length < 2:
            continue
        own = ids[offsets[b]:offsets[b + 1]]
        for h, following in zip(states(p, block, own[:-1]), own[1:]):
            at = len(losses)
            x0 = math.sqrt(width) * p["encoder.items.weight"][following]
            x0 = x0.detach() if detach else x0
            t = 1 + int(uniform((key, at, 0, TIMESTEP, 0)) * T)
            keep = uniform((key, at, 0, MASK, 0)) >= drop
            xt = torch.sqrt(alpha_bar[t]) * x0 + sigma[t] * normals((key, at, 0, NOISE, 0), kind)
            m = denoise(p, xt, h if keep else p["denoiser.null_condition"], t)
            losses.append(((m - x0)**2).mean())
            steps.append(t)
            kept.append(keep)
    assert 0 < sum(kept) < len(kept) and len(set(steps)) > 3
    return torch.stack(losses).mean()


def generate(p, block, kind, chain, guidance, ddpm):
    out = []
    for b, length in enumerate(lengths):
        own = ids[offsets[b]:offsets[b + 1]]
        h = states(p, block, own)[-1] if length > 0 else torch.zeros(width)
        x = normals((seed, rows[b], 0, INITIAL, 0), kind)
        for i, (t, s) in enumerate(zip(chain[:-1], chain[1:])):
            m = (1 + guidance) * denoise(p, x, h, t) - guidance * denoise(p, x, p["denoiser.null_condition"], t)
            if ddpm:
                left = alpha_bar[s]
                x = beta[t] * torch.sqrt(left) / (1 - alpha_bar[t]) * m + (1 - left) * torch.sqrt(1 - beta[t]) / (1 - alpha_bar[t]) * x
                if s > 0:
                    x = x + torch.sqrt(beta[t] * (1 - left) / (1 - alpha_bar[t])) * normals((seed, rows[b], i + 1, SAMPLER, 0), kind)
            else:
                x = torch.sqrt(alpha_bar[s]) * m + sigma[s] * (x - torch.sqrt(alpha_bar[t]) * m) / sigma[t]
        out.append(x / math.sqrt(width))
    return torch.stack(out).detach().numpy()


out = {"ids": ids.numpy(), "offsets": offsets.astype(np.int64), "rows": np.array(rows, dtype=np.int64),
       "seed": np.array([seed], dtype=np.int64), "alpha_bar": alpha_bar.numpy()}
for case, two_layers in (("mlp1", False), ("mlp2", True)):
    p, block = make(two_layers)
    out.update({f"{case}.{n}": v.detach().numpy().copy() for n, v in p.items()})
    for kind in ("float", "double"):
        name = f"{case}.{kind}"
        for detach in (False, True):
            for v in p.values():
                v.grad = None
            loss = loss_of(p, block, kind, detach)
            loss.backward()
            if detach:  # everything else as it was
                out[f"{name}.detached.encoder.items.weight"] = p["encoder.items.weight"].grad.numpy().copy()
            else:
                out[f"{name}.loss"] = np.array([loss.item()])
                out.update({f"{name}.d.{n}": v.grad.numpy().copy() for n, v in p.items()})
        with torch.no_grad():
            out[f"{name}.ddpm.x"] = generate(p, block, kind, range(T, -1, -1), 2.0, True)
            out[f"{name}.ddim.x"] = generate(p, block, kind, [12, 9, 6, 3, 0], 0.0, False)
safetensors_writer.write(
    pathlib.Path(__file__).with_suffix(".safetensors"),
    out,
    {"script": "tests/golden/dreamrec.py", "python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
)
