#!/usr/bin/env python3
"""Trains a small multi-task ranker in PyTorch and writes what examples/from_pytorch.cpp needs to load it and to be sure it did.

    examples/pytorch/train.py --out DIR        model.safetensors     the state_dict
                                               batch.safetensors     inputs, PyTorch's outputs and loss, its times
                                               gradient.safetensors  of that loss, under the names of the state_dict

The world is made up, with a truth that is known: users and items have tastes, a user clicks on what is like something in the
history. Needs PyTorch and nothing else. Without --out it prints and writes nothing.
"""
import argparse
import os
import pathlib
import platform
import time
import warnings

# One thread, and a BLAS that uses the whole processor: an OpenBLAS older than it would fall back to a narrow set.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
if pathlib.Path("/proc/cpuinfo").exists() and " avx512dq" in pathlib.Path("/proc/cpuinfo").read_text():
    os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")
    os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx512")

import torch

import ranker


class World:
    """Clicks, likes and shares. A click is likely where a candidate is near any item of the history."""

    def __init__(self, items, users, seed):
        self.random = torch.Generator().manual_seed(seed)
        self.items = torch.nn.functional.normalize(self.normal(items, 4), dim=-1)
        self.users = self.normal(users)  # readiness to click

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.random)

    def batch(self, rows, longest):
        """users [B], history ids one after another, offsets [B + 1], candidates [B], labels [B, 3]"""
        choose = lambda most, *shape: torch.randint(most, shape, generator=self.random)
        users, lengths = choose(len(self.users), rows), 1 + choose(longest, rows)
        offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
        history, candidates = choose(len(self.items), int(offsets[-1])), choose(len(self.items), rows)
        near = (self.items[history] * self.items[candidates].repeat_interleave(lengths, 0)).sum(-1)
        table = torch.full((rows, longest), -1.0)
        table[torch.arange(longest) < lengths.unsqueeze(1)] = near
        best = table.max(1).values
        logits = torch.stack([6 * best - 5 + 0.7 * self.users[users], 3 * self.items[candidates, 0] + 2 * best - 3,
                              2 * self.items[candidates, 1] - 2 * self.items[candidates, 2] - 1], 1)
        labels = (torch.rand(logits.shape, generator=self.random) < torch.sigmoid(logits)).float()
        return users, history, offsets, candidates, labels


def auc(scores, labels):
    """Share of pairs of one positive and one negative that are in the right order."""
    order = scores.double().argsort()
    ranks = torch.empty(len(scores), dtype=torch.double)
    ranks[order] = torch.arange(1, len(scores) + 1, dtype=torch.double)
    positives = labels.sum().item()
    negatives = len(labels) - positives
    return (ranks[labels > 0].sum().item() - positives * (positives + 1) / 2) / (positives * negatives)


def loss_of(model, users, history, offsets, candidates, labels):
    """Logits [B, 3], and the sum over tasks of the mean binary cross-entropy."""
    logits = model(users, *ranker.padded(history, offsets), candidates.unsqueeze(1)).squeeze(1)
    return logits, torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(0).sum()


class Call(torch.nn.Module):
    """A model with some of its inputs fixed to None: a trace takes tensors only."""

    def __init__(self, model, given):
        super().__init__()
        self.model, self.given = model, given

    def forward(self, *tensors):
        rest = iter(tensors)
        return self.model(*(next(rest) if given else None for given in self.given))


def microseconds(model, *inputs):
    """Of one call, the fastest of many: of the module and of its frozen trace, whichever is faster."""
    tensors = [x for x in inputs if x is not None]
    calls = [lambda: model(*inputs)]
    try:
        call = Call(model, [x is not None for x in inputs]).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer versions would rather be asked for something else
            traced = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(call, tensors)))
        calls.append(lambda: traced(*tensors))
    except Exception as error:  # the module is what counts
        print("no trace:", str(error).splitlines()[0])
    best = float("inf")
    for call in calls:
        end = time.perf_counter() + 1.5
        while time.perf_counter() < end:
            begin = time.perf_counter()
            call()
            best = min(best, time.perf_counter() - begin)
    return 1e6 * best


def processor():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, help="folder to write to")
    for name, value in dict(items=300, users=100, width=16, heads=2, experts=4, expert_width=32, tower_width=16, longest=40,
                            steps=400, seed=1).items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=value, help=f"[{value}]")
    o = parser.parse_args()
    torch.manual_seed(o.seed)
    torch.set_num_threads(1)
    world = World(o.items, o.users, o.seed)
    model = ranker.Ranker(o.items, o.users, o.width, o.heads, o.experts, o.expert_width, o.tower_width, tasks=3)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(o.steps):
        _, loss = loss_of(model, *world.batch(512, o.longest))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % max(1, o.steps // 4) == 0:
            print(f"step {step + 1}: loss {loss.item():.4f}")
    model.eval()
    held_out = world.batch(8192, o.longest)
    with torch.no_grad():
        logits, loss = loss_of(model, *held_out)
    aucs = [auc(logits[:, t], held_out[-1][:, t]) for t in range(3)]
    print(f"held out: loss {loss.item():.4f}, AUC of clicks, likes, shares " + " ".join(f"{a:.4f}" for a in aucs))
    if o.out is None:
        return

    # The batch: 512 rows of one candidate each, with gradients, and a request: one user, 200 candidates.
    users, history, offsets, candidates, labels = world.batch(512, o.longest)
    logits, loss = loss_of(model, users, history, offsets, candidates, labels)
    optimizer.zero_grad()
    loss.backward()
    one_user, one_history = torch.tensor([7 % o.users]), torch.randint(o.items, (1, o.longest))
    many = torch.randint(o.items, (1, 200))
    table, hidden = ranker.padded(history, offsets)
    with torch.inference_mode():
        ranked = model(one_user, one_history, None, many)
        times = {"request": microseconds(model, one_user, one_history, None, many),
                 "batch": microseconds(model, users, table, hidden, candidates.unsqueeze(1))}
    small = lambda ids: ids.to(torch.int16 if o.items <= 32767 and o.users <= 32767 and len(history) <= 32767 else torch.int32)
    tensors = {"batch.users": small(users), "batch.history": small(history), "batch.offsets": small(offsets),
               "batch.candidates": small(candidates), "batch.labels": labels,
               "batch.logits": logits, "batch.loss": loss.reshape(1),
               "request.users": small(one_user), "request.history": small(one_history[0]),
               "request.offsets": small(torch.tensor([0, o.longest])), "request.candidates": small(many[0]),
               "request.logits": ranked[0]}
    metadata = {"heads": str(o.heads), "torch": torch.__version__, "processor": processor(),
                **{name + "_microseconds": f"{time:.1f}" for name, time in times.items()}}
    o.out.mkdir(parents=True, exist_ok=True)
    ranker.save_file(model.state_dict(), o.out / "model.safetensors", {"heads": str(o.heads)})
    ranker.save_file({name: p.grad for name, p in model.named_parameters()}, o.out / "gradient.safetensors")
    ranker.save_file(tensors, o.out / "batch.safetensors", metadata)
    print(f"PyTorch {torch.__version__}, one thread: {times['request']:.0f} us a request of {many.shape[1]} candidates, "
          f"{times['batch']:.0f} us a batch of {len(users)} rows")
    print(f"wrote {o.out}/model.safetensors, batch.safetensors and gradient.safetensors")


if __name__ == "__main__":
    main()
