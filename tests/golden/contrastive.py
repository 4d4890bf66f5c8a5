#!/usr/bin/env python3
"""Golden vectors for contrastive losses, made with PyTorch's autograd in double from their formulas: writes contrastive.safetensors.

    python3 contrastive.py
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
inf = torch.inf


def keep(name, loss, **inputs):
    grads = torch.autograd.grad(loss, list(inputs.values()), retain_graph=True)
    out[name + ".loss"] = np.array([loss.item()])
    for key, g in zip(inputs, grads):
        out[f"{name}.d{key}"] = g.numpy().reshape(-1) if g.dim() == 0 else g.numpy()


# Rows against candidates.
B, K, D = 7, 19, 5
u, v = torch.randn(B, D, requires_grad=True), torch.randn(K, D, requires_grad=True)
ls = torch.tensor(0.7, requires_grad=True)
c, b = torch.randn(K, requires_grad=True), torch.randn(B, K, requires_grad=True)
pos = torch.randint(0, K, (B,))
w = torch.rand(B)
w[2] = 0
exclude = (torch.rand(B, K) < 0.3).to(torch.uint8)
ids = torch.randint(0, 6, (K,))
q = torch.rand(B, K) * (torch.rand(B, K) < 0.4)
row_labels, column_labels = torch.randint(0, 4, (B,)), torch.randint(0, 4, (K,))
row_labels[3] = 9  # without a positive
for name, t in dict(u=u, v=v, c=c, b=b, pos=pos, w=w, exclude=exclude, ids=ids, q=q, row_labels=row_labels, column_labels=column_labels).items():
    out[name] = t.detach().numpy()

z = ls.exp() * u @ v.t()
keep("plain", F.cross_entropy(z, pos), u=u, v=v, ls=ls)
own = F.one_hot(pos, K).bool()
hidden = (exclude.bool() | (ids[None, :] == ids[pos][:, None])) & ~own
rows = F.cross_entropy((z + c + b).masked_fill(hidden, -inf), pos, reduction="none")
keep("all", (w * rows).sum() / w.sum(), u=u, v=v, ls=ls, c=c, b=b)
masked = (z + c).masked_fill(exclude.bool() & (q == 0), -inf)  # a target is never left out
rows = q.sum(1) * torch.logsumexp(masked, 1) - (q * masked.masked_fill(q == 0, 0)).sum(1)
valid = (q.sum(1) > 0).double()
keep("soft", (valid * rows).sum() / valid.sum(), u=u, v=v, ls=ls, c=c)
match = row_labels[:, None] == column_labels[None, :]
valid = match.any(1)
logp = torch.log_softmax(z, 1)
keep("outside", (-(logp * match).sum(1)[valid] / match.sum(1)[valid]).mean(), u=u, v=v, ls=ls)
keep("inside", -torch.logsumexp(logp.masked_fill(~match, -inf), 1)[valid].mean(), u=u, v=v, ls=ls)
sims = u @ v.t()  # margin: those nearly as similar as the positive, or more, are no negatives
near = (sims > sims.gather(1, pos[:, None]) - 0.5) & ~own
keep("margin", F.cross_entropy(z.masked_fill(near, -inf), pos), u=u, v=v, ls=ls)

# Pairs.
N = 9
x, y = torch.randn(N, D, requires_grad=True), torch.randn(N, D, requires_grad=True)
pw = torch.rand(N)
pw[4] = 0
xid, yid = torch.randint(0, 5, (N,)), torch.randint(0, 5, (N,))
xb, yb = torch.randn(N), torch.randn(N)
out |= {"pairs.x": x.detach().numpy(), "pairs.y": y.detach().numpy(), "pairs.w": pw.numpy(), "pairs.xid": xid.numpy(),
        "pairs.yid": yid.numpy(), "pairs.xb": xb.numpy(), "pairs.yb": yb.numpy()}
z, eye = ls.exp() * x @ y.t(), torch.eye(N, dtype=torch.bool)
target = torch.arange(N)
keep("symmetric", (F.cross_entropy(z, target) + F.cross_entropy(z.t(), target)) / 2, x=x, y=y, ls=ls)
gone = (pw == 0)[None, :]


def side(z, ids, bias):
    z = (z + bias).masked_fill(((ids[:, None] == ids[None, :]) & ~eye) | gone & ~eye, -inf)
    return (pw * F.cross_entropy(z, target, reduction="none")).sum() / pw.sum()


keep("symmetric_all", (side(z, yid, yb) + side(z.t(), xid, xb)) / 2, x=x, y=y, ls=ls)
views = torch.randn(8, D, requires_grad=True)
out["views"] = views.detach().numpy()
s = 2 * views @ views.t()
keep("nt_xent", F.cross_entropy(s.masked_fill(torch.eye(8, dtype=torch.bool), -inf), (torch.arange(8) + 4) % 8), z=views)

# Sequences of users 0 to 4: user 2 has none on one side, user 3 on the other; user 4 is user 0 again.
xo, yo = [0, 3, 4, 4, 9, 11], [0, 2, 5, 6, 6, 9]
p, r = torch.randn(11, D, requires_grad=True), torch.randn(9, D, requires_grad=True)
out |= {"align.x": p.detach().numpy(), "align.y": r.detach().numpy(), "align.xo": np.array(xo), "align.yo": np.array(yo)}
users = [0, 1, 4]
a = F.normalize(torch.stack([p[xo[i]:xo[i + 1]].mean(0) for i in users]))
e = F.normalize(torch.stack([r[yo[i]:yo[i + 1]].mean(0) for i in users]))
z = ls.exp() * a @ e.t()
z = z.masked_fill(torch.tensor([[0, 0, 1], [0, 0, 0], [1, 0, 0]]).bool(), -inf)
keep("align", (F.cross_entropy(z, torch.arange(3)) + F.cross_entropy(z.t(), torch.arange(3))) / 2, x=p, y=r, ls=ls)

safetensors_writer.write(
    pathlib.Path(__file__).with_suffix(".safetensors"),
    out,
    {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
)
