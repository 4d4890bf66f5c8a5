#!/usr/bin/env python3
"""Golden vectors for the searches of long histories, made with PyTorch and NumPy: writes history_search.safetensors beside this script.

    python3 history_search.py

ETA (arXiv 2108.04468), SDIM (arXiv 2205.10249) and SIM (arXiv 2006.05639) written user by user from their formulas in double; gradients by
autograd. Nothing is shared between users, nothing is tabulated.
"""
import pathlib
import platform

import numpy as np
import torch

import safetensors_writer

torch.manual_seed(20260101)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
out = {}
histories, candidates = [9, 0, 1, 23], [3, 2, 0, 4]
history_offsets = np.concatenate([[0], np.cumsum(histories)]).astype(np.int64)
candidate_offsets = np.concatenate([[0], np.cumsum(candidates)]).astype(np.int64)
width, bits, keep, heads = 8, 70, 4, 2

e = torch.randn(history_offsets[-1], width, requires_grad=True)
q = torch.randn(candidate_offsets[-1], width, requires_grad=True)
g = torch.randn(candidate_offsets[-1], width)
out.update(history=e.detach().numpy(), candidates=q.detach().numpy(), cotangent=g.numpy(), history_offsets=history_offsets,
           candidate_offsets=candidate_offsets)


def users():
    for b in range(len(histories)):
        yield slice(history_offsets[b], history_offsets[b + 1]), slice(candidate_offsets[b], candidate_offsets[b + 1])


def words(signs):
    """Plane 0 is the lowest bit of the first word."""
    packed = np.packbits(signs, axis=1, bitorder="little")
    packed = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8)))
    return packed.view(np.int64)  # the format has no unsigned 64-bit type that we read


def attend(query, rows, heads):
    d = width // heads
    parts = []
    for a in range(heads):
        cut = slice(a * d, (a + 1) * d)
        p = torch.softmax(rows[:, cut] @ query[cut] / np.sqrt(d), 0)
        parts.append(p @ rows[:, cut])
    return torch.cat(parts)


# ETA
planes = torch.randn(bits, width)
sign_e, sign_q = (e.detach() @ planes.T >= 0).numpy(), (q.detach() @ planes.T >= 0).numpy()
indices = np.full((candidate_offsets[-1], keep), -1, np.int32)
distances = np.full((candidate_offsets[-1], keep), 255, np.uint8)
y = [torch.zeros(0, width)]
for rows, who in users():
    for i in range(who.start, who.stop):
        d = (sign_e[rows] != sign_q[i]).sum(1)
        order = np.argsort(d, kind="stable")[:keep]
        indices[i, :len(order)] = order
        distances[i, :len(order)] = d[order]
        y.append((attend(q[i], e[rows][order.copy()], heads) if len(order) else torch.zeros(width))[None])
y = torch.cat(y)
y.backward(g)
out.update({"eta.planes": planes.T.numpy(), "eta.history_signatures": words(sign_e), "eta.candidate_signatures": words(sign_q),
            "eta.indices": indices, "eta.distances": distances, "eta.out": y.detach().numpy(), "eta.dhistory": e.grad.numpy().copy(),
            "eta.dcandidates": q.grad.numpy().copy()})

# SDIM: every behaviour that falls into the candidate's bucket, group by group
groups, tau = 5, 2
planes = torch.randn(groups * tau, width)
code = lambda x: ((x.detach() @ planes.T >= 0).reshape(-1, groups, tau).numpy() * (1 << np.arange(tau))).sum(2)
code_e, code_q = code(e), code(q)
for name, normalize in (("unit", True), ("sum", False)):
    e.grad = q.grad = None
    y = [torch.zeros(0, width)]
    for rows, who in users():
        for i in range(who.start, who.stop):
            total = torch.zeros(width)
            for t in range(groups):
                u = e[rows][code_e[rows][:, t] == code_q[i, t]].sum(0)
                if normalize and u.detach().abs().sum() > 0:
                    u = u / u.norm()
                total = total + u / groups
            y.append(total[None])
    y = torch.cat(y)
    y.backward(g)
    out.update({f"sdim.{name}.out": y.detach().numpy(), f"sdim.{name}.dhistory": e.grad.numpy().copy()})
out.update({"sdim.planes": planes.T.numpy(), "sdim.history_codes": code_e.astype(np.int32), "sdim.candidate_codes": code_q.astype(np.int32)})

# SIM: the pooled vector of the soft search, written as the sum over behaviours
e.grad = q.grad = None
inner = 5
wa, wb = torch.randn(inner, width, requires_grad=True), torch.randn(inner, width, requires_grad=True)
y, scores = [torch.zeros(0, width)], []
for rows, who in users():
    r = (e[rows] @ wb.T) @ (q[who] @ wa.T).T
    y.append(r.T @ e[rows])
    scores.append(r.T.detach().numpy().ravel())
y = torch.cat(y)
y.backward(g)
out.update({"sim.query": wa.detach().numpy(), "sim.key": wb.detach().numpy(), "sim.pooled": y.detach().numpy(),
            "sim.scores": np.concatenate(scores), "sim.dhistory": e.grad.numpy().copy(), "sim.dcandidates": q.grad.numpy().copy(),
            "sim.dquery": wa.grad.numpy(), "sim.dkey": wb.grad.numpy()})

# SIM: the exact unit, torch's own multi-head attention over [behaviour, embedding of the time gap]
e.grad = q.grad = None
gap_width, buckets, unit = 3, 6, 60
table = torch.randn(buckets, gap_width, requires_grad=True)
mha = torch.nn.MultiheadAttention(width, heads, batch_first=True, kdim=width + gap_width, vdim=width + gap_width)
times = torch.randint(0, 4000, (history_offsets[-1],))
now = torch.full((len(histories),), 4000)
bucket = torch.clamp(((now[0] - times) // unit).apply_(lambda x: int(x).bit_length()), max=buckets - 1)
y = []
for rows, who in users():
    for i in range(who.start, who.stop):
        order = indices[i][indices[i] >= 0]
        if len(order) == 0:
            y.append(mha.out_proj.bias[None])
            continue
        kv = torch.cat([e[rows][order.copy()], table[bucket[rows][order.copy()]]], 1)[None]
        y.append(mha(q[i][None, None], kv, kv, need_weights=False)[0][0])
y = torch.cat(y)
y.backward(g)
out.update({"esu.table": table.detach().numpy(), "esu.times": times.numpy(), "esu.now": now.numpy(), "esu.out": y.detach().numpy(),
            "esu.dhistory": e.grad.numpy(), "esu.dcandidates": q.grad.numpy(), "esu.dtable": table.grad.numpy()})
for name, p in mha.named_parameters():
    out["esu." + name] = p.detach().numpy()
    out["esu.d" + name] = p.grad.numpy()

safetensors_writer.write(pathlib.Path(__file__).with_suffix(".safetensors"), out,
                         {"torch": torch.__version__, "python": platform.python_version()})
