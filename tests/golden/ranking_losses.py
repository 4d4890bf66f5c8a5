#!/usr/bin/env python3
"""Golden vectors for the losses of ranking/, from their definitions in PyTorch (double, autograd): writes ranking_losses.safetensors
beside this script.

    python3 ranking_losses.py
"""
import pathlib
import platform

import numpy as np
import torch
import torch.nn.functional as F

import safetensors_writer

torch.manual_seed(20261128)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
out = {}

sizes = [0, 9, 1, 30, 4]  # group 2 has one item, group 4 one class
offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
total = int(offsets[-1])
s = (torch.randn(total) * 1.5).requires_grad_()
y = (torch.rand(total) < 0.35).double()
y[0], y[1] = 1, 0
y[-4:] = 0
rel = torch.randint(0, 4, (total,)).double()
out |= {"offsets": offsets, "scores": s.detach().numpy(), "labels": y.numpy().astype(np.uint8), "relevance": rel.numpy()}


def over_groups(name, loss, has):
    """The mean of loss(s, begin, end) over groups that have one, and its gradient."""
    each = [loss(s[b:e], int(b), int(e)) for b, e in zip(offsets[:-1], offsets[1:]) if e > b and has(int(b), int(e))]
    value = torch.stack(each).mean()
    out[name + ".loss"] = np.array([value.item()])
    out[name + ".d"] = torch.autograd.grad(value, s)[0].numpy()


def both(b, e):
    return 0 < y[b:e].sum() < e - b


def differences(x, b, e):
    """Positive minus negative, all pairs."""
    m = y[b:e].bool()
    return (x[m][:, None] - x[~m][None, :]).flatten()


over_groups("logistic", lambda x, b, e: F.softplus(-1.3 * differences(x, b, e)).mean(), both)
over_groups("sigmoid", lambda x, b, e: torch.sigmoid(-1.3 * differences(x, b, e)).mean(), both)
over_groups("squared", lambda x, b, e: ((0.8 - differences(x, b, e)) ** 2).mean(), both)
over_groups("hinge", lambda x, b, e: torch.relu(0.8 - differences(x, b, e)).mean(), both)
over_groups("squared_hinge", lambda x, b, e: (torch.relu(0.8 - differences(x, b, e)) ** 2).mean(), both)
over_groups("exponential", lambda x, b, e: torch.exp(-differences(x, b, e)).mean(), both)
over_groups("log_exponential", lambda x, b, e: torch.exp(-differences(x, b, e)).mean().log(), both)
over_groups("hardest", lambda x, b, e: torch.exp(-differences(x, b, e).min()), both)
over_groups("soft_hardest", lambda x, b, e: F.softplus(
    torch.logsumexp(2.0 * x[y[b:e] == 0], 0) / 2.0 + torch.logsumexp(-2.0 * x[y[b:e] == 1], 0) / 2.0 + 0.3), both)


def spread(b, e):
    return rel[b:e].max() > rel[b:e].min()


def pairs(x, b, e):
    """Score differences of all pairs whose first is more relevant, and where they are."""
    i, j = torch.nonzero(rel[b:e][:, None] > rel[b:e][None, :], as_tuple=True)
    return x[i] - x[j], i, j


over_groups("ranknet", lambda x, b, e: F.softplus(-1.3 * pairs(x, b, e)[0]).sum(), spread)


def lambdarank(k):
    def loss(x, b, e):
        d, i, j = pairs(x, b, e)
        rank = torch.argsort(torch.argsort(-x.detach(), stable=True))
        discount = torch.where(rank < k, 1 / torch.log2(rank + 2.0), torch.zeros(()))
        gain = torch.exp2(rel[b:e]) - 1
        best = torch.sort(gain, descending=True)[0][:k]
        ideal = (best / torch.log2(torch.arange(len(best)) + 2.0)).sum()
        return ((gain[i] - gain[j]) * (discount[i] - discount[j]).abs() / ideal * F.softplus(-d)).sum()

    return loss


over_groups("lambdarank", lambdarank(1000), spread)
over_groups("lambdarank_5", lambdarank(5), spread)
over_groups("listnet", lambda x, b, e: F.cross_entropy(x[None], torch.softmax(rel[b:e] / 0.7, 0)[None]), lambda b, e: True)


def listmle(k):
    def loss(x, b, e):
        z = x[torch.argsort(-rel[b:e], stable=True)]
        return (torch.logcumsumexp(z.flip(0), 0).flip(0) - z)[:k].sum()

    return loss


over_groups("listmle", listmle(1000), lambda b, e: True)
over_groups("listmle_5", listmle(5), lambda b, e: True)
over_groups("softmax_each", lambda x, b, e: -torch.log_softmax(x, 0)[y[b:e] == 1].mean(), lambda b, e: y[b:e].sum() > 0)
over_groups("softmax_any", lambda x, b, e: -torch.softmax(x, 0)[y[b:e] == 1].sum().log(), lambda b, e: y[b:e].sum() > 0)


def approx_ndcg(x, b, e):
    rank = 0.5 + torch.sigmoid((x[None, :] - x[:, None]) / 0.4).sum(1)
    gain = torch.exp2(rel[b:e]) - 1
    ideal = (torch.sort(gain, descending=True)[0] / torch.log2(torch.arange(e - b) + 2.0)).sum()
    return -(gain / torch.log2(1 + rank)).sum() / ideal


over_groups("approx_ndcg", approx_ndcg, lambda b, e: rel[b:e].max() > 0)


def border(x, b, e):
    terms = []
    for i in range(e - b):
        for j in range(i + 1, min(e - b, i + 4)):
            step = rel[b + i] - rel[b + j]
            if step.abs() > 0.5:
                terms.append(F.softplus(-1.2 * (torch.sign(step) * (x[i] - x[j]) - 0.2)))
    first = torch.stack(terms).mean() if terms else torch.zeros(())
    return first + 0.3 * ((x.diff() - 0.6 * rel[b:e].diff()) ** 2).mean()


over_groups("border", border, lambda b, e: e - b >= 2)

# Conversion in entire space.
n = 37
a, b, c, imputed = (torch.randn(n, requires_grad=True) for _ in range(4))
o = (torch.rand(n) < 0.4).double()
r = o * (torch.rand(n) < 0.4).double()
out |= {"cvr.a": a.detach().numpy(), "cvr.b": b.detach().numpy(), "cvr.c": c.detach().numpy(), "cvr.imputed": imputed.detach().numpy(),
        "cvr.clicks": o.numpy().astype(np.uint8), "cvr.conversions": r.numpy().astype(np.uint8)}
logit_bce = F.binary_cross_entropy_with_logits
pa, pb, pc = torch.sigmoid(a), torch.sigmoid(b), torch.sigmoid(c)


def keep(name, loss, *inputs):
    out[name + ".loss"] = np.array([loss.item()])
    for which, g in zip("abcd", torch.autograd.grad(loss, inputs, retain_graph=True)):
        out[f"{name}.d{which}"] = g.numpy()


both_steps = F.binary_cross_entropy(pa * pb, r)
keep("esmm", logit_bce(a, o) + both_steps, a, b)
e = logit_bce(b, r, reduction="none")
for through in (False, True):
    q = (pa if through else pa.detach()).clamp(min=0.3)
    tail = "_through" if through else ""
    for norm, mass in (("entire", n), ("clicked", o.sum()), ("self_normalised", (o / q).sum())):
        keep(f"ips_{norm}{tail}", logit_bce(a, o) + 0.7 * (o * e / q).sum() / mass + 1.4 * both_steps, a, b)
    guess = F.softplus(imputed)
    dr = (guess + o * (e - guess) / q).mean() + (o * (e - guess) ** 2 / q).mean()
    loss = logit_bce(a, o) + 0.7 * dr + 1.4 * both_steps
    out[f"dr{tail}.loss"] = np.array([loss.item()])
    for which, g in zip("abd", torch.autograd.grad(loss, (a, b, imputed), retain_graph=True)):
        out[f"dr{tail}.d{which}"] = g.numpy()
w, v = o / pa.detach().clamp(min=0.15), (1 - o) / (1 - pa.detach()).clamp(min=0.15)
gap = logit_bce(b, 1 - pc.detach(), reduction="none") + logit_bce(c, 1 - pb.detach(), reduction="none")
terms = both_steps + (w * e).sum() / o.sum() + F.binary_cross_entropy(pa * pc, o - r)
terms = terms + (w * logit_bce(c, 1 - r, reduction="none")).sum() / o.sum()
keep("chorus", terms + 0.8 * ((w * gap).sum() / o.sum() + (v * gap).sum() / (1 - o).sum()) + 0.9 * logit_bce(a, o), a, b, c)

safetensors_writer.write(
    pathlib.Path(__file__).with_suffix(".safetensors"),
    out,
    {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
)
