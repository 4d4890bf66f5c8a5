#!/usr/bin/env python3
"""Golden vectors for storage formats: float16 by numpy, bfloat16 and per-row int8 by PyTorch: writes storage.safetensors beside this
script. Bits of sixteen-bit numbers are stored as int32.

    python3 storage.py
"""
import pathlib
import platform

import numpy as np
import torch

import safetensors_writer

rng = np.random.default_rng(20240608)
out = {}

# Bit patterns of every exponent with fractions around the places where the formats round; finite ones only.
heads = rng.integers(0, 1 << 16, 700, dtype=np.uint32) << 16
tails = rng.choice(np.array([0, 1, 0x0FFF, 0x1000, 0x1001, 0x2000, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32), 700)
x = (heads | tails).view(np.float32)
x = np.concatenate([x[np.isfinite(x)], rng.standard_normal(200).astype(np.float32),
                    (rng.standard_normal(300) * 10.0 ** rng.integers(-9, 6, 300)).astype(np.float32),
                    np.array([0.0, -0.0, np.inf, -np.inf, 65504, 65519.99, 65520, 2.0**-14, 2.0**-24, 2.0**-25, 3.4e38], np.float32)])
out["x"] = x
with np.errstate(over="ignore"):
    out["half"] = x.astype(np.float16).view(np.uint16).astype(np.int32)
    # Doubles a hair away from ties of float16, which a detour through float would round the wrong way.
    ties = (1 + (np.arange(200) + 0.5) / 1024) * 2.0 ** rng.integers(-14, 14, 200)
    d = np.concatenate([np.nextafter(ties, 0), np.nextafter(ties, 1e9), ties, rng.standard_normal(100)])
    out["d"] = d
    out["d.half"] = d.astype(np.float16).view(np.uint16).astype(np.int32)
out["bfloat"] = torch.from_numpy(x).to(torch.bfloat16).view(torch.int16).numpy().astype(np.int32) & 0xFFFF
every = np.arange(0, 0x10000, 7, dtype=np.uint16)
values = every.view(np.float16).astype(np.float32)
out["every.half"] = np.where(np.isnan(values), np.float32(0), values)

# int8 with a scale per row: scales as documented, codes and dequantised rows by torch.
rows = torch.from_numpy((rng.standard_normal((23, 37)) * 10.0 ** rng.integers(-3, 3, (23, 1))).astype(np.float32))
scales = rows.abs().amax(dim=1) / 127
q = torch.quantize_per_channel(rows, scales.double(), torch.zeros(23, dtype=torch.long), 0, torch.qint8)
out["rows"] = rows.numpy()
out["scales"] = scales.numpy()
out["codes"] = q.int_repr().numpy().astype(np.int32)
out["dequantized"] = q.dequantize().numpy()

safetensors_writer.write(
    pathlib.Path(__file__).with_suffix(".safetensors"),
    out,
    {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
)
