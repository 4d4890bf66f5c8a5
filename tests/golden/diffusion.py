#!/usr/bin/env python3
"""Golden vectors for diffusion/, written to diffusion.safetensors beside this script.

    python3 diffusion.py          # needs diffusers (made with 0.27.2) and torch

By diffusers: schedules (linear, cosine), noising, velocity, single steps of DDPM, DDIM and DPM-Solver++, whole chains, embeddings of
steps. Its tables are float32; they are replaced by the same tables in float64, so that what is compared is the arithmetic of the steps.
By numpy, from the definitions: the schedules diffusers does not have. By torch, from the papers: denoisers with their gradients.
Steps are counted from 1, as the library does; diffusers' step i is step i + 1.
"""
import pathlib
import platform

import diffusers
import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.schedulers import scheduling_ddpm

import safetensors_writer

torch.manual_seed(20200619)
torch.set_num_threads(1)
out = {}


def put(name, x):
    out[name] = np.ascontiguousarray(x.detach().numpy() if torch.is_tensor(x) else np.asarray(x))


# Schedules ------------------------------------------------------------------------------------------------------------------------------

def clipped(signal, T, most=0.999):
    return np.array([min(1 - signal((i + 1) / T) / signal(i / T), most) for i in range(T)])


def numpy_schedules(T):
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    trunc = lambda u: np.cos((u + 0.1) / 1.1 * np.pi / 2) ** 2
    scale = 1000 / T
    variance = np.linspace(1e-4 * 5e-4, 1e-4 * 5e-3, T)
    first = np.concatenate([[variance[0]], 1 - (1 - variance[1:]) / (1 - variance[:-1])])
    first[0] = 1e-5
    return {
        "sqrt": clipped(lambda u: 1 - np.sqrt(u + 1e-4), T),
        "sigmoid": clipped(lambda u: (sigmoid(3) - sigmoid(-3 + 6 * u)) / (sigmoid(3) - sigmoid(-3)), T),
        "exponential": 1 - np.exp(-0.1 / T - (10 - 0.1) * np.linspace(1, 2 * T + 1, T) / (2 * T * T)),
        "truncated_linear": np.linspace(1e-4 * scale + 0.01, 0.02 * scale + 0.01, T),
        "truncated_cosine": np.array([1 - trunc(0)] + [min(1 - trunc((i + 1) / T) / trunc(i / T), 0.999) for i in range(T - 1)]),
        "linear_variance": first,
    }


for name, beta in numpy_schedules(50).items():
    put("schedule." + name, np.cumprod(1 - beta))
put("schedule.linear", DDPMScheduler(1000, beta_schedule="linear").alphas_cumprod)
put("schedule.cosine", DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2").alphas_cumprod)

# Steps ----------------------------------------------------------------------------------------------------------------------------------

T, rows, cols = 1000, 3, 5
beta = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)


def exact(s):
    s.betas, s.alphas = beta, 1 - beta
    s.alphas_cumprod = torch.cumprod(s.alphas, 0)
    one = torch.tensor(1.0, dtype=torch.float64)
    if hasattr(s, "one"):
        s.one = one
    if hasattr(s, "final_alpha_cumprod"):
        s.final_alpha_cumprod = one
    return s


kinds = {"x0": "sample", "epsilon": "epsilon", "v": "v_prediction"}
x, m, z = (torch.randn(rows, cols, dtype=torch.float64) for _ in range(3))
put("x", x), put("m", m), put("z", z)
scheduling_ddpm.randn_tensor = lambda *a, **k: z

noising = exact(DDPMScheduler(T))
t = torch.tensor([0, 499, 999])  # steps 1, 500, 1000
put("noised", noising.add_noise(x, z, t))
put("velocity", noising.get_velocity(x, z, t))

for kind, theirs in kinds.items():
    for size in ("small", "large"):
        s = exact(DDPMScheduler(T, prediction_type=theirs, variance_type="fixed_" + size, clip_sample=False))
        for step in (1, 2, 500, 1000):
            put(f"ddpm.{size}.{kind}.{step}", s.step(m, step - 1, x).prev_sample)
    for spacing in ("leading", "trailing"):
        s = exact(DDIMScheduler(T, prediction_type=theirs, clip_sample=False, set_alpha_to_one=True, timestep_spacing=spacing))
        s.set_timesteps(10)
        for eta in (0, 0.5, 1):
            for i in (0, 4, 9):
                put(f"ddim.{spacing}.{kind}.{eta}.{i}", s.step(m, s.timesteps[i], x, eta=float(eta), variance_noise=z).prev_sample)


def denoiser(kind, t):
    """Something smooth that is no denoiser of anything."""
    return lambda x: torch.tanh(0.5 * x + 0.001 * t) + 0.1 * x


def solver(kind, n, order):
    s = exact(DPMSolverMultistepScheduler(T, algorithm_type="dpmsolver++", solver_order=order, prediction_type=kinds[kind], timestep_spacing="trailing",
                                          final_sigmas_type="zero", lower_order_final=True))
    s.set_timesteps(n)
    at = s.timesteps.numpy()
    a = s.alphas_cumprod.numpy()[at]
    s.sigmas = torch.from_numpy(np.concatenate([((1 - a) / a) ** 0.5, [0.0]]))
    return s


for kind in kinds:
    for n in (5, 20):
        s = exact(DDIMScheduler(T, prediction_type=kinds[kind], clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing"))
        s.set_timesteps(n)
        y = x
        for t in s.timesteps:
            y = s.step(denoiser(kind, float(t) + 1)(y), t, y).prev_sample
        put(f"chain.ddim.{kind}.{n}", y)
        for order in (1, 2):
            s = solver(kind, n, order)
            y = x
            for t in s.timesteps:
                y = s.step(denoiser(kind, float(t) + 1)(y), t, y).prev_sample
            put(f"chain.solver{order}.{kind}.{n}", y)

# Embeddings of steps --------------------------------------------------------------------------------------------------------------------

steps = torch.tensor([0.0, 3.0, 999.0])
put("embedding.cosine_first", get_timestep_embedding(steps, 16, flip_sin_to_cos=True, downscale_freq_shift=0))
put("embedding.sine_first", get_timestep_embedding(steps, 16, flip_sin_to_cos=False, downscale_freq_shift=1))

# Denoisers ------------------------------------------------------------------------------------------------------------------------------

nn, D = torch.nn, 6


def embed(t, dim, scale=1.0, sine_first=False):
    """From the papers; that of diffusers is float32."""
    half = dim // 2
    frequency = torch.exp(-np.log(10000) * torch.arange(half, dtype=torch.float64) / (half - 1 if sine_first else half))
    angle = scale * t.double()[:, None] * frequency[None]
    parts = [torch.sin(angle), torch.cos(angle)] if sine_first else [torch.cos(angle), torch.sin(angle)]
    return torch.cat(parts, -1)


def save(prefix, named, inputs, y):
    dy = torch.randn_like(y)
    y.backward(dy)
    put(prefix + ".y", y), put(prefix + ".dy", dy)
    for name, x in inputs.items():
        put(f"{prefix}.{name}", x), put(f"{prefix}.d{name}", x.grad)
    for name, p in named.items():
        put(f"{prefix}.{name}", p), put(f"{prefix}.d.{name}", p.grad)


def linear(named, name, i, o):
    l = nn.Linear(i, o).double()
    named[name + ".weight"], named[name + ".bias"] = l.weight, l.bias
    return l


def leaf(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


# DreamRec's two-layer denoiser; rows 1 and 3 lost their condition in training.
named = {}
step_mlp = nn.Sequential(linear(named, "time.linear_1", D, 2 * D), nn.GELU(), linear(named, "time.linear_2", 2 * D, D))
diffuser = nn.Sequential(linear(named, "net.hidden.0.linear", 3 * D, 2 * D), nn.GELU(), linear(named, "net.last.linear", 2 * D, D))
none = nn.Parameter(torch.randn(D, dtype=torch.float64))
named["null_condition"] = none
x4, c4, t4 = leaf(4, D), leaf(4, D), torch.tensor([1, 7, 7, 200])
kept = torch.tensor([1, 0, 1, 0], dtype=torch.bool)
h = torch.where(kept[:, None], c4, none[None])
save("dreamrec", named, {"x": x4, "c": c4}, diffuser(torch.cat([x4, h, step_mlp(embed(t4, D, sine_first=True))], -1)))

# DiffuRec: three histories of 4, 1 and 2 items; lambda is given so as to be the same.
D, heads, blocks = 8, 2, 2
lengths = [4, 1, 2]
named = {}
step_mlp = nn.Sequential(linear(named, "time.linear_1", D, 4 * D), nn.SiLU(), linear(named, "time.linear_2", 4 * D, D))
norm = nn.LayerNorm(D).double()
named["norm.weight"], named["norm.bias"] = norm.weight, norm.bias
stack = []
for i in range(blocks):
    b = nn.TransformerEncoderLayer(D, heads, 4 * D, 0.0, "gelu", batch_first=True, norm_first=True).double()
    stack.append(b)
    for name, p in b.named_parameters():
        named[f"blocks.{i}.{name}"] = p
with torch.no_grad():
    for name, p in named.items():
        if "norm" in name or "bias" in name:
            p += 0.1 * torch.randn_like(p)
history, x3, lam = leaf(sum(lengths), D), leaf(3, D), 0.3 + 0.3 * torch.randn(sum(lengths), D, dtype=torch.float64)
e, y, at = step_mlp(embed(torch.tensor([1, 16, 32]), D, scale=1000 / 32)), [], 0
for r, length in enumerate(lengths):
    z = norm(history[at:at + length]) + lam[at:at + length] * (x3[r] + e[r])
    z = z[None]
    for b in stack:
        z = b(z)
    y.append(z[0, -1])
    at += length
put("diffurec.lambda", lam)
save("diffurec", named, {"history": history, "x": x3}, torch.stack(y))

# DiffRec: rows of length 1, tanh.
I, H, E = 9, 7, 4
named = {}
emb = linear(named, "net.time.linear_1", E, E)
hidden, last = linear(named, "net.net.hidden.0.linear", I + E, H), linear(named, "net.net.last.linear", H, I)
xi = leaf(3, I)
unit = torch.nn.functional.normalize(xi, dim=-1)
save("diffrec", named, {"x": xi}, last(torch.tanh(hidden(torch.cat([unit, emb(embed(torch.tensor([1, 2, 5]), E))], -1)))))

here = pathlib.Path(__file__).parent
safetensors_writer.write(here / "diffusion.safetensors", out,
                         {"diffusers": diffusers.__version__, "torch": torch.__version__, "numpy": np.__version__,
                          "python": platform.python_version()})
