#!/usr/bin/env python3
"""Golden vectors for frequency operators: layers written from the papers' public layouts on PyTorch's FFT and layers, gradients by
its autograd, in double: writes frequency.safetensors beside this script.

    python3 frequency.py
"""
import math
import pathlib
import platform

import torch
import torch.nn.functional as F

import safetensors_writer

torch.manual_seed(20241128)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
out = {}


def keep(case, **tensors):
    for name, value in tensors.items():
        out[f"{case}.{name}"] = value.detach().numpy().copy()


def learnt(*shape, scale=1.0):
    return (torch.randn(*shape) * scale).requires_grad_()


def finish(case, x, y, parameters):
    """Backward through y; what a layer is compared with."""
    dy = torch.randn_like(y)
    y.backward(dy)
    keep(case, x=x, y=y, dy=dy, dx=x.grad, **parameters)
    keep(case, **{f"d.{name}": value.grad for name, value in parameters.items()})


def fmlp_filter(x, complex_weight):
    """FMLP-Rec's filter layer without what surrounds it: parameter [1, K, D, 2], norm "ortho"."""
    spectrum = torch.fft.rfft(x, dim=1, norm="ortho") * torch.view_as_complex(complex_weight)
    return torch.fft.irfft(spectrum, n=x.shape[1], dim=1, norm="ortho")


def norm(z, p):
    return F.layer_norm(z, z.shape[-1:], p["LayerNorm.weight"], p["LayerNorm.bias"], 1e-12)


def norm_parameters(width):
    return {"LayerNorm.weight": (torch.rand(width) + 0.5).requires_grad_(), "LayerNorm.bias": learnt(width)}


def prefixed(prefix, parameters):
    return {f"{prefix}.{name}": value for name, value in parameters.items()}


def feed_forward(x, p):
    h = F.gelu(F.linear(x, p["dense_1.weight"], p["dense_1.bias"]))
    return norm(x + F.linear(h, p["dense_2.weight"], p["dense_2.bias"]), p)


def feed_forward_parameters(width, hidden):
    return {"dense_1.weight": learnt(hidden, width, scale=0.3), "dense_1.bias": learnt(hidden, scale=0.3),
            "dense_2.weight": learnt(width, hidden, scale=0.3), "dense_2.bias": learnt(width, scale=0.3), **norm_parameters(width)}


def attention(x, p, heads):
    """Masked self-attention, each row sees itself and what came before."""
    b, n, d = x.shape
    q, k, v = F.linear(x, p["in_proj_weight"], p["in_proj_bias"]).view(b, n, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) / math.sqrt(d // heads)
    scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -math.inf)
    pooled = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, d)
    return F.linear(pooled, p["out_proj.weight"], p["out_proj.bias"])


def rescaled(x, sqrt_beta, c):
    """BSARec's frequency layer: c // 2 + 1 low bins stay, the rest is weighed by the square."""
    spectrum = torch.fft.rfft(x, dim=1, norm="ortho")
    low = spectrum.clone()
    low[:, c // 2 + 1:, :] = 0
    low = torch.fft.irfft(low, n=x.shape[1], dim=1, norm="ortho")
    return low + sqrt_beta ** 2 * (x - low)


# FMLP: even, odd and one-row sequences; then a whole block.
for case, length in [("fmlp_even", 12), ("fmlp_odd", 13), ("fmlp_one", 1), ("fmlp_prime", 67)]:
    x, w = learnt(3, length, 5), learnt(1, length // 2 + 1, 5, 2)
    finish(case, x, fmlp_filter(x, w), {"complex_weight": w})
x, w = learnt(2, 10, 6), learnt(1, 6, 6, 2)
sublayer, network = {"complex_weight": w, **norm_parameters(6)}, feed_forward_parameters(6, 24)
finish("fmlp_block", x, feed_forward(norm(x + fmlp_filter(x, w), sublayer), network),
       {**prefixed("layer", sublayer), **prefixed("feed_forward", network)})

# BSARec.
for case, length, c in [("bsarec_c5", 14, 5), ("bsarec_c4", 9, 4)]:
    x, heads, a = learnt(2, length, 6), 2, 0.7
    rescaler = {"sqrt_beta": learnt(1, 1, 6), **norm_parameters(6)}
    attend = {"in_proj_weight": learnt(18, 6, scale=0.5), "in_proj_bias": learnt(18), "out_proj.weight": learnt(6, 6),
              "out_proj.bias": learnt(6), **norm_parameters(6)}
    dsp = norm(x + rescaled(x, rescaler["sqrt_beta"], c), rescaler)
    gsp = norm(x + attention(x, attend, heads), attend)
    finish(case, x, a * dsp + (1 - a) * gsp, {**prefixed("filter_layer", rescaler), **prefixed("attention_layer", attend)})

# SLIME4Rec: layer 1 of 3, both windows, mode four.
length, layers, layer, ratio = 17, 3, 1, 0.4
bins = length // 2 + 1
x, g, l = learnt(2, length, 4), learnt(1, bins, 4, 2), learnt(1, bins, 4, 2)
step = bins * (1 - ratio) // (layers - 1)
dynamic = slice(int(bins * (1 - ratio) - layer * step), int(bins - layer * step))
static = slice(int(bins * (1 - 1 / layers) - layer * bins / layers), int(bins - layer * bins / layers))
spectrum = torch.fft.rfft(x, dim=1, norm="ortho")
mixed = torch.zeros_like(spectrum)
for window, weight in [(dynamic, g), (static, l)]:
    mask = torch.zeros(1, bins, 1)
    mask[:, window] = 1
    mixed = mixed + mask * spectrum * torch.view_as_complex(weight)
finish("slide", x, torch.fft.irfft(mixed, n=length, dim=1, norm="ortho"), {"complex_weight_G": g, "complex_weight_L": l})

# FARM's module, with the gate of our reconstruction: one gain pair per sequence, then per channel.
for case, per_channel in [("farm", False), ("farm_channels", True)]:
    x, width, hidden = learnt(3, 11, 4), 4, 7
    w1, b1 = learnt(hidden, width), learnt(hidden)
    w2, b2 = learnt(8 if per_channel else 2, hidden), learnt(8 if per_channel else 2)
    z = 2 * torch.sigmoid(F.linear(torch.relu(F.linear(x.mean(1), w1, b1)), w2, b2))
    half = z.shape[1] // 2
    spectrum = torch.fft.rfft(x, dim=1)
    low = torch.fft.irfft(torch.cat([spectrum[:, :2], 0 * spectrum[:, 2:]], 1), n=11, dim=1)
    y = z[:, None, :half] * low + z[:, None, half:] * (x - low)
    finish(case, x, y, {"gate.hidden.0.linear.weight": w1, "gate.hidden.0.linear.bias": b1, "gate.last.linear.weight": w2,
                        "gate.last.linear.bias": b2})

# Autocorrelation attention: lags per sequence, all bins, then the window of layer 1 of 2.
for case, layers, layer in [("autocorr", 1, 0), ("autocorr_window", 2, 1)]:
    length, width, factor = 15, 4, 1.5
    x = learnt(2, length, width)
    p = {f"{n}.{kind}": learnt(width, width) if kind == "weight" else learnt(width) for n in ["query", "key", "value", "dense"]
         for kind in ["weight", "bias"]}
    q, k, v = (F.linear(x, p[f"{n}.weight"], p[f"{n}.bias"]) for n in ["query", "key", "value"])
    bins = length // 2 + 1
    mask = torch.zeros(1, bins, 1)
    mask[:, int(bins * (1 - 1 / layers) - layer * bins / layers):int(bins - layer * bins / layers)] = 1
    match = torch.fft.irfft(mask * torch.fft.rfft(q, dim=1) * torch.fft.rfft(k, dim=1).conj(), n=length, dim=1).mean(-1)
    best, lags = match.topk(int(factor * math.log(length)), dim=1)
    weights = best.softmax(1)
    delayed = torch.stack([torch.stack([torch.roll(v[b], -int(t), 0) for t in lags[b]]) for b in range(2)])
    y = (weights[:, :, None, None] * delayed).sum(1)
    finish(case, x, F.linear(y, p["dense.weight"], p["dense.bias"]), p)

# Amplitudes.
for case, length in [("amplitude_even", 8), ("amplitude_odd", 9)]:
    x = learnt(2, length, 3)
    finish(case, x, torch.log1p((torch.fft.rfft(x, dim=1).abs() ** 2 + 1e-12).sqrt()), {})

safetensors_writer.write(pathlib.Path(__file__).with_suffix(".safetensors"), out,
                        {"torch": torch.__version__, "python": platform.python_version()})
