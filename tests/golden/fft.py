#!/usr/bin/env python3
"""Golden vectors for transforms along sequences and frequency filters: values from numpy and scipy, gradients from PyTorch, all in double
precision: writes fft.safetensors beside this script.

    python3 fft.py
"""
import pathlib
import platform

import numpy as np
import scipy
import scipy.fft
import torch

import safetensors_writer

rng = np.random.default_rng(20250211)
out = {}


def rounded(*shape):
    """Random numbers that float32 holds exactly, so that float and double tests read the same inputs."""
    return rng.standard_normal(shape).astype(np.float32).astype(np.float64)


for length, cols in [(1, 2), (2, 3), (5, 2), (8, 17), (14, 2), (37, 2), (50, 3), (64, 2), (67, 3)]:
    bins = length // 2 + 1
    prefix = f"{length}_"
    x, dy = rounded(length, cols), rounded(length, cols)
    w_re, w_im = rounded(bins, cols), rounded(bins, cols)
    spectrum = np.fft.rfft(x, axis=0)
    out[prefix + "x"], out[prefix + "dy"], out[prefix + "w_re"], out[prefix + "w_im"] = x, dy, w_re, w_im
    out[prefix + "X_re"], out[prefix + "X_im"] = spectrum.real.copy(), spectrum.imag.copy()
    ortho = scipy.fft.rfft(x, axis=0, norm="ortho")
    out[prefix + "ortho_re"], out[prefix + "ortho_im"] = ortho.real.copy(), ortho.imag.copy()
    out[prefix + "inverse"] = scipy.fft.irfft(w_re + 1j * w_im, n=length, axis=0, norm="forward")
    out[prefix + "y"] = np.fft.irfft((w_re + 1j * w_im) * spectrum, n=length, axis=0)

    # Gradients: of the filter, of rfft (upstream w), of irfft (upstream dy).
    tx, tr, ti = (torch.tensor(v, requires_grad=True) for v in (x, w_re, w_im))
    y = torch.fft.irfft(torch.complex(tr, ti) * torch.fft.rfft(tx, dim=0), n=length, dim=0)
    y.backward(torch.tensor(dy))
    out[prefix + "dx"], out[prefix + "dw_re"], out[prefix + "dw_im"] = (v.grad.numpy().copy() for v in (tx, tr, ti))
    tx = torch.tensor(x, requires_grad=True)
    z = torch.fft.rfft(tx, dim=0, norm="ortho")
    (z.real * torch.tensor(w_re) + z.imag * torch.tensor(w_im)).sum().backward()
    out[prefix + "rfft_dx"] = tx.grad.numpy().copy()
    tr, ti = (torch.tensor(v, requires_grad=True) for v in (w_re, w_im))
    torch.fft.irfft(torch.complex(tr, ti), n=length, dim=0).backward(torch.tensor(dy))
    out[prefix + "irfft_re"], out[prefix + "irfft_im"] = tr.grad.numpy().copy(), ti.grad.numpy().copy()

out["lengths"] = np.array([1, 2, 5, 8, 14, 37, 50, 64, 67], dtype=np.int64)

here = pathlib.Path(__file__).resolve().parent
safetensors_writer.write(
    here / "fft.safetensors",
    out,
    {"numpy": np.__version__, "scipy": scipy.__version__, "torch": torch.__version__, "python": platform.python_version()},
)
