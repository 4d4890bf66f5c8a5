#!/usr/bin/env python3
"""Loads a model that `from_pytorch --to DIR` trained and saved into PyTorch, and compares outputs and gradients.

    examples/pytorch/check.py DIR     0: they agree; 1: they do not

The state_dict must fit to the last name (strict=True). The folder that train.py writes passes too.
"""
import pathlib
import sys

import torch

import ranker
import train


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    state, metadata = ranker.load_file(folder / "model.safetensors")
    model = ranker.like(state, int(metadata["heads"]))
    model.load_state_dict(state, strict=True)
    model.eval()
    data, _ = ranker.load_file(folder / "batch.safetensors")
    theirs, _ = ranker.load_file(folder / "gradient.safetensors")
    data = {name: tensor if tensor.is_floating_point() else tensor.long() for name, tensor in data.items()}

    inputs = [data["batch." + name] for name in ("users", "history", "offsets", "candidates", "labels")]
    logits, loss = train.loss_of(model, *inputs)
    loss.backward()
    with torch.no_grad():
        history, candidates = data["request.history"].unsqueeze(0), data["request.candidates"].unsqueeze(0)
        ranked = model(data["request.users"], history, None, candidates)[0]
    gradients = dict(model.named_parameters())
    same_names = gradients.keys() == theirs.keys()
    differences = {
        "logits of the batch": (logits - data["batch.logits"]).abs().max().item(),
        "logits of the request": (ranked - data["request.logits"]).abs().max().item(),
        "loss": abs(loss.item() - data["batch.loss"].item()),
        "gradients, of the largest in a tensor": max(
            ((gradients[name].grad - g).abs().max() / g.abs().max().clamp_min(1e-30)).item() for name, g in theirs.items()
            if name in gradients),
    }
    print(f"{len(state)} tensors loaded by load_state_dict(strict=True)")
    for what, difference in differences.items():
        print(f"  {what}: off by {difference:.1e}" + ("" if difference < 1e-5 else "   NO"))
    if not same_names:
        print("  gradients have other names than parameters:", sorted(gradients.keys() ^ theirs.keys()))
    return 0 if same_names and all(d < 1e-5 for d in differences.values()) else 1  # a NaN is not less


if __name__ == "__main__":
    sys.exit(main())
