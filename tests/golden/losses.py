#!/usr/bin/env python3
"""Golden vectors for losses, made with PyTorch in double: writes losses.safetensors beside this script.

    python3 losses.py
"""
import pathlib
import platform

import numpy as np
import torch
import torch.nn.functional as F

import safetensors_writer

torch.manual_seed(20261124)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
out = {}


def keep(name, loss, *inputs):
    grads = torch.autograd.grad(loss, inputs)
    out[name + ".loss"] = np.array([loss.item()])
    for i, g in enumerate(grads):
        out[f"{name}.d{i}"] = g.numpy()


# Regression, plain and weighted.
x, y, w = torch.randn(7, 5, requires_grad=True), torch.randn(7, 5) * 2, torch.rand(7, 5)
w[2, 3] = 0
out |= {"regression.x": x.detach().numpy(), "regression.y": y.numpy(), "regression.w": w.numpy()}
keep("mse", F.mse_loss(x, y), x)
keep("mse_weighted", (w * (x - y) ** 2).sum() / w.sum(), x)
keep("huber", F.huber_loss(x, y, delta=0.7), x)
keep("huber_weighted", (w * F.huber_loss(x, y, delta=0.7, reduction="none")).sum() / w.sum(), x)

# Softmax cross-entropy.
z, t, rw = torch.randn(9, 37, requires_grad=True), torch.randint(0, 37, (9,)), torch.rand(9)
rw[4] = 0
log_q, ids = torch.log(torch.rand(37) + 0.01), torch.arange(37)
ids[5] = ids[11] = ids[t[0]]  # duplicates of the first row's target
with torch.no_grad():
    z *= 3
out |= {"softmax.z": z.detach().numpy(), "softmax.t": t.numpy(), "softmax.w": rw.numpy(), "softmax.log_q": log_q.numpy(),
        "softmax.ids": ids.numpy()}
keep("softmax", F.cross_entropy(z, t), z)
keep("softmax_smooth", F.cross_entropy(z, t, label_smoothing=0.15), z)
keep("softmax_weighted", (rw * F.cross_entropy(z, t, reduction="none")).sum() / rw.sum(), z)
corrected = z - log_q
hit = (ids[None, :] == ids[t][:, None]) & (torch.arange(37)[None, :] != t[:, None])
keep("softmax_log_q", (rw * F.cross_entropy(corrected.masked_fill(hit, -torch.inf), t, reduction="none")).sum() / rw.sum(), z)

# Sampled softmax.
p, n = torch.randn(6, requires_grad=True), torch.randn(6, 21, requires_grad=True)
log_qp, log_qn = torch.log(torch.rand(6)), torch.log(torch.rand(21))
pid, nid = torch.randint(0, 12, (6,)), torch.randint(0, 12, (21,))
sw = torch.rand(6)
out |= {"sampled.p": p.detach().numpy(), "sampled.n": n.detach().numpy(), "sampled.log_qp": log_qp.numpy(), "sampled.log_qn": log_qn.numpy(),
        "sampled.pid": pid.numpy(), "sampled.nid": nid.numpy(), "sampled.w": sw.numpy()}
keep("sampled", F.cross_entropy(torch.cat([p[:, None], n], 1), torch.zeros(6, dtype=torch.int64)), p, n)
negatives = (n - log_qn).masked_fill(pid[:, None] == nid[None, :], -torch.inf)
rows = F.cross_entropy(torch.cat([(p - log_qp)[:, None], negatives], 1), torch.zeros(6, dtype=torch.int64), reduction="none")
keep("sampled_log_q", (sw * rows).sum() / sw.sum(), p, n)

# Binary cross-entropy with label smoothing e: labels become y (1 - e) + e / 2.
bz, by, bw = torch.randn(8, 3, requires_grad=True), torch.randint(0, 2, (8, 3)).double(), torch.rand(8, 3)
out |= {"bce.z": bz.detach().numpy(), "bce.y": by.numpy(), "bce.w": bw.numpy()}
smooth = by * 0.9 + 0.05
rows = F.binary_cross_entropy_with_logits(bz, smooth, reduction="none")
keep("bce_smooth", ((bw * rows).sum(0) / bw.sum(0)).sum(), bz)

safetensors_writer.write(
    pathlib.Path(__file__).with_suffix(".safetensors"),
    out,
    {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
)
