#!/usr/bin/env python3
"""Files made by the Python package safetensors, for tests/io: writes safetensors_files/*.safetensors beside this script.

    python3 safetensors_files.py

Needs PyTorch and safetensors (made with the versions that the files name in their metadata). model_TYPE are state_dicts as
safetensors.torch.save_file writes them; model_values has the same numbers, widened to float64, written by hand, so that a reader
of its own can check what was read. types has every type numpy knows, and names and shapes on the edge.
"""
import pathlib

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
import torch

import safetensors_writer

torch.manual_seed(20240611)
folder = pathlib.Path(__file__).parent / "safetensors_files"


class Ranker(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.items = torch.nn.EmbeddingBag(7, 4, mode="sum")
        self.attention = torch.nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = torch.nn.LayerNorm(4)
        self.experts = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)) for _ in range(3))
        self.batch_norm = torch.nn.BatchNorm1d(3)
        self.tower = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 1))


model = Ranker()
model.train()
for _ in range(3):
    model.batch_norm(torch.randn(9, 3) * 2 + 1)
for parameter in model.parameters():
    torch.nn.init.normal_(parameter)
model = model.double()
metadata = {"format": "pt"}
values = {}
for name, dtype in {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}.items():
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    safetensors.torch.save_file(state, folder / f"model_{name}.safetensors", metadata)
    values |= {f"{name}.{k}": v.double().numpy() for k, v in state.items()}
versions = {"torch": torch.__version__, "numpy": np.__version__, "safetensors": safetensors.__version__}
safetensors_writer.write(folder / "model_values.safetensors", values, versions)

types = {f"numbers.{t}": np.array([[0, 1, 2], [3, 100, 127]], dtype=t) for t in
         ["float64", "float32", "float16", "int64", "uint64", "int32", "uint32", "int16", "uint16", "int8", "uint8", "complex64"]}
types["numbers.bool"] = np.array([True, False])
types["scalar"] = np.array(-2.5, dtype=np.float32)
types["no numbers"] = np.zeros((0, 3), dtype=np.float32)
types["no numbers either"] = np.zeros((2, 0, 5), dtype=np.int16)
types["three axes"] = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
types["extremes"] = np.array([-2**63, 2**63 - 1], dtype=np.int64)
types["edges"] = np.array([np.inf, -np.inf, np.nan, -0.0, 5e-324, 1.7976931348623157e308], dtype=np.float64)
types["quote \" backslash \\ tab \t bell \x07 Ünïcødé 名前 🙂"] = np.array([1, 2, 3], dtype=np.int32)
types[""] = np.array([7], dtype=np.uint8)
safetensors.numpy.save_file(types, folder / "types.safetensors", {"made by": "numpy \" \\ 名"})
safetensors.numpy.save_file({}, folder / "empty.safetensors")
