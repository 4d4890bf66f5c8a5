#!/usr/bin/env python3
"""Golden vectors for DIN and MiNet, made with PyTorch in double: writes user_interest.safetensors beside this script.

    python3 user_interest.py

Written from the formulas of arXiv 1706.06978 and 2008.02974 with the concatenations spelled out, gradients by autograd.
"""
import pathlib
import platform

import numpy as np
import torch

import safetensors_writer

torch.manual_seed(20260102)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
out = {}
histories, others, candidates = [6, 0, 1, 11], [4, 3, 0, 7], [3, 2, 1, 4]
offsets = lambda lengths: np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
of_history, of_others, of_candidates = offsets(histories), offsets(others), offsets(candidates)
width = 5
e = torch.randn(of_history[-1], width, requires_grad=True)
q = torch.randn(of_candidates[-1], width, requires_grad=True)
g = torch.randn(of_candidates[-1], width)
out.update(history=e.detach().numpy(), candidates=q.detach().numpy(), cotangent=g.numpy(), history_offsets=of_history,
           candidate_offsets=of_candidates, source_offsets=of_others)


def leaf(*shape, scale=0.5):
    return (scale * torch.randn(*shape)).requires_grad_()


def pairs():
    for b in range(len(histories)):
        for i in range(of_candidates[b], of_candidates[b + 1]):
            yield i, slice(of_history[b], of_history[b + 1])


# DIN
hidden = [7, 4]
for name in ("prelu", "dice", "sigmoid"):
    w = [leaf(hidden[0], 4 * width), leaf(hidden[1], hidden[0]), leaf(1, hidden[1])]
    b = [leaf(hidden[0]), leaf(hidden[1]), leaf(1)]
    alpha = [leaf(hidden[0]), leaf(hidden[1])]
    for k in range(3):
        out[f"din.{name}.weight{k}"], out[f"din.{name}.bias{k}"] = w[k].detach().numpy(), b[k].detach().numpy()
    for k in range(2):
        out[f"din.{name}.alpha{k}"] = alpha[k].detach().numpy()

    def act(k, s):
        if name == "sigmoid":
            return torch.sigmoid(s)
        if name == "prelu":
            return torch.where(s > 0, s, alpha[k] * s)
        p = torch.sigmoid((s - s.mean(0)) / torch.sqrt(s.var(0, unbiased=False) + 1e-8))
        return p * s + (1 - p) * alpha[k] * s

    for normalize in ("plain", "softmax"):
        leaves = [e, q, *w, *b, *(alpha if name != "sigmoid" else [])]
        for x in leaves:
            x.grad = None
        rows = torch.cat([torch.cat([q[i].expand(e[s].shape), e[s], q[i] - e[s], q[i] * e[s]], 1) for i, s in pairs()])
        scores = act(1, act(0, rows @ w[0].T + b[0]) @ w[1].T + b[1]) @ w[2].T + b[2]
        y, at = [], 0
        for i, s in pairs():
            a = scores[at:at + s.stop - s.start, 0]
            at += s.stop - s.start
            if normalize == "softmax":
                a = torch.softmax(a / np.sqrt(width), 0) if len(a) else a
            y.append((a @ e[s])[None])
        y = torch.cat(y)
        y.backward(g)
        key = f"din.{name}.{normalize}."
        out.update({key + "out": y.detach().numpy(), key + "dhistory": e.grad.numpy().copy(), key + "dcandidates": q.grad.numpy().copy()})
        for k in range(3):
            out[f"{key}dweight{k}"], out[f"{key}dbias{k}"] = w[k].grad.numpy().copy(), b[k].grad.numpy().copy()
        if name != "sigmoid":
            for k in range(2):
                out[f"{key}dalpha{k}"] = alpha[k].grad.numpy().copy()

# MiNet: widths dt = 5, ds = 6, du = 3, rank 2, hidden 4, gates hidden 3
ds, du, rank, h, hg = 6, 3, 2, 4, 3
c_s = leaf(of_others[-1], ds, scale=1)
user = leaf(len(histories), du, scale=1)
v_t, v = leaf(h, 3 * width + du), leaf(h)
v_s, vs = leaf(h, ds + 2 * width + du), leaf(h)
ha, hb = leaf(rank, ds), leaf(width, rank)
total = width + du + width + ds
gw = [leaf(hg, total) for _ in range(3)]
gh, gb = [leaf(hg) for _ in range(3)], [leaf(1) for _ in range(3)]
g_all = torch.randn(of_candidates[-1], total)
leaves = [e, q, c_s, user, v_t, v, v_s, vs, ha, hb, *gw, *gh, *gb]
for x in leaves:
    x.grad = None
target, source, y = [], [], []
for b in range(len(histories)):
    for i in range(of_candidates[b], of_candidates[b + 1]):
        t, u = q[i], user[b]
        clicks = e[of_history[b]:of_history[b + 1]]
        n = len(clicks)
        x = torch.cat([clicks, t.expand(n, width), u.expand(n, du), clicks * t], 1)
        a = torch.softmax(torch.relu(x @ v_t.T) @ v, 0) if n else torch.zeros(0)
        agg_t = a @ clicks if n else torch.zeros(width)
        clicks = c_s[of_others[b]:of_others[b + 1]]
        n = len(clicks)
        x = torch.cat([clicks, t.expand(n, width), u.expand(n, du), (clicks @ ha.T @ hb.T) * t], 1)
        a = torch.softmax(torch.relu(x @ v_s.T) @ vs, 0) if n else torch.zeros(0)
        agg_s = a @ clicks if n else torch.zeros(ds)
        z = torch.cat([t, u, agg_t, agg_s])
        gate = [torch.exp(gh[k] @ torch.relu(gw[k] @ z) + gb[k][0]) for k in range(3)]
        target.append(agg_t[None])
        source.append(agg_s[None])
        y.append(torch.cat([t, gate[0] * u, gate[1] * agg_t, gate[2] * agg_s])[None])
y = torch.cat(y)
y.backward(g_all)
out.update({"minet.source": c_s.detach().numpy(), "minet.user": user.detach().numpy(), "minet.cotangent": g_all.numpy(),
            "minet.agg_target": torch.cat(target).detach().numpy(), "minet.agg_source": torch.cat(source).detach().numpy(),
            "minet.out": y.detach().numpy(), "minet.dhistory": e.grad.numpy(), "minet.dcandidates": q.grad.numpy(),
            "minet.dsource": c_s.grad.numpy(), "minet.duser": user.grad.numpy()})
names = {"target.weight": v_t, "target.score": v, "source.weight": v_s, "source.score": vs, "source.down": ha, "source.up": hb}
for k in range(3):
    names.update({f"gate{k}.weight": gw[k], f"gate{k}.score": gh[k], f"gate{k}.bias": gb[k]})
for name, x in names.items():
    out["minet." + name], out["minet.d" + name] = x.detach().numpy(), x.grad.numpy()

safetensors_writer.write(pathlib.Path(__file__).with_suffix(".safetensors"), out,
                         {"torch": torch.__version__, "python": platform.python_version()})
