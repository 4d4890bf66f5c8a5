#!/usr/bin/env python3
"""Golden vectors for optimisers, schedules, clipping and regression losses, made with PyTorch in double: writes train.safetensors
beside this script. PCGrad and the min-norm point come from scipy and numpy, from their definitions on whole vectors.

    python3 train.py
"""
import pathlib
import platform

import numpy as np
import scipy
import scipy.optimize
import torch
import torch.nn.functional as F

import safetensors_writer

torch.manual_seed(20261123)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
out = {}

# Ten steps from the same start down the same gradients.
start, gradients = torch.randn(5, 7), torch.randn(10, 5, 7)
gradients[3, 1] = 0
out |= {"start": start.numpy(), "gradients": gradients.numpy()}
optimizers = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.03),
    "sgd_momentum": lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9, weight_decay=0.1),
    "sgd_nesterov": lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.8, nesterov=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "adagrad_all": lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.2, weight_decay=0.05, initial_accumulator_value=0.3, eps=1e-4),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.8, 0.95), eps=1e-6),
    "adam_l2": lambda p: torch.optim.Adam(p, lr=0.02, weight_decay=0.3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.3),
}
for name, make in optimizers.items():
    p = start.clone().requires_grad_()
    optimizer, after = make([p]), []
    for g in gradients:
        p.grad = g.clone()
        optimizer.step()
        after.append(p.detach().clone())
    out[name] = torch.stack(after).numpy()

# Factors of the learning rate, for 25 steps.
schedulers = {
    "warmup": lambda o: torch.optim.lr_scheduler.LinearLR(o, start_factor=0.1, end_factor=1.0, total_iters=8),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=24, eta_min=0.05),
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=7, gamma=0.3),
}
for name, make in schedulers.items():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, rates = make(optimizer), []
    for _ in range(25):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    out["schedule." + name] = np.array(rates)

# Clipping by norm over two tensors, and by value.
a, b = torch.zeros(4, 3, requires_grad=True), torch.zeros(5, requires_grad=True)
out |= {"clip.a": (da := torch.randn(4, 3)).numpy(), "clip.b": (db := torch.randn(5)).numpy()}
a.grad, b.grad = da.clone(), db.clone()
out["clip.norm"] = np.array([float(torch.nn.utils.clip_grad_norm_([a, b], 1.5))])
out |= {"clip.norm_a": a.grad.numpy().copy(), "clip.norm_b": b.grad.numpy().copy()}
a.grad, b.grad = da.clone(), db.clone()
torch.nn.utils.clip_grad_value_([a, b], 0.4)
out |= {"clip.value_a": a.grad.numpy().copy(), "clip.value_b": b.grad.numpy().copy()}

# Uncertainty weighting: the formula under autograd.
losses, s, c = torch.rand(4) + 0.1, torch.randn(4, requires_grad=True), torch.tensor([1.0, 1.0, 0.5, 0.5])
total = (c * torch.exp(-s) * losses + s / 2).sum()
total.backward()
out |= {"uncertainty.losses": losses.numpy(), "uncertainty.s": s.detach().numpy(), "uncertainty.c": c.numpy(),
        "uncertainty.total": np.array([total.item()]), "uncertainty.ds": s.grad.numpy()}

# The shortest convex combination of gradients, by scipy's SLSQP from several starts.
random = np.random.default_rng(7)
for count in [2, 3, 5, 12]:
    g = random.normal(size=(count, 20)) + 0.4 * random.normal(size=20)
    best = None
    for _ in range(8):
        start_a = random.dirichlet(np.ones(count))
        r = scipy.optimize.minimize(lambda x: x @ (g @ g.T) @ x, start_a, jac=lambda x: 2 * (g @ g.T) @ x, bounds=[(0, 1)] * count,
                                    constraints={"type": "eq", "fun": lambda x: x.sum() - 1, "jac": lambda x: np.ones(count)},
                                    method="SLSQP", options={"ftol": 1e-16, "maxiter": 1000})
        if best is None or r.fun < best.fun:
            best = r
    out |= {f"min_norm.{count}.gradients": g, f"min_norm.{count}.weights": best.x, f"min_norm.{count}.square": np.array([best.fun])}

# PCGrad of two gradients on whole vectors, where the order does not matter.
g = random.normal(size=(2, 20))
g[1] -= 1.5 * g[0]
surgery = [g[i] - min(0, g[i] @ g[1 - i]) / (g[1 - i] @ g[1 - i]) * g[1 - i] for i in range(2)]
out |= {"pcgrad.gradients": g, "pcgrad.sum": surgery[0] + surgery[1]}

safetensors_writer.write(
    pathlib.Path(__file__).with_suffix(".safetensors"),
    out,
    {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__, "scipy": scipy.__version__},
)
