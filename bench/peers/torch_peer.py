"""PyTorch on one thread. Outputs are preallocated where the operation takes `out`; inference mode throughout."""
import math
import time

import torch

torch.set_num_threads(1)
torch.set_grad_enabled(False)
types = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16}


def version():
    return torch.__version__ + " " + (torch.backends.cpu.get_cpu_capability() if hasattr(torch.backends, "cpu") else "")


def rotated(make, copies):
    return [make() for _ in range(copies)]


def unary(f, n, type="f32", copies=1):
    """f of n numbers: exp, sigmoid, tanh, gelu, silu, softplus, log ..."""
    xs = rotated(lambda: torch.empty(n, dtype=types[type]).uniform_(-5, 5), copies)
    y = torch.empty(n, dtype=types[type])
    if hasattr(torch, f) and f not in ("gelu", "silu", "softplus"):
        g = getattr(torch, f)
        return lambda i: g(xs[i % copies], out=y)
    g = getattr(torch.nn.functional, f)
    return lambda i: g(xs[i % copies])


def softmax(n, rows=1, type="f32", copies=1):
    xs = rotated(lambda: torch.randn(rows, n, dtype=types[type]), copies)
    return lambda i: torch.softmax(xs[i % copies], -1)


def reduce(f, n, type="f32", copies=1):
    """sum, max, argmax, logsumexp of n numbers"""
    g = getattr(torch, f)
    xs = rotated(lambda: torch.randn(n, dtype=types[type]), copies)
    if f == "logsumexp":
        return lambda i: g(xs[i % copies], -1)
    return lambda i: g(xs[i % copies])


def normal(n, type="f32"):
    x = torch.empty(n, dtype=types[type])
    return lambda i: x.normal_()


def uniform(n, type="f32"):
    x = torch.empty(n, dtype=types[type])
    return lambda i: x.uniform_()


def sort(n, type="f32", copies=100):
    """Values and indices."""
    xs = rotated(lambda: torch.randn(n, dtype=types[type]), copies)
    return lambda i: torch.sort(xs[i % copies])


def argsort(n, type="f32", copies=100):
    xs = rotated(lambda: torch.randn(n, dtype=types[type]), copies)
    return lambda i: torch.argsort(xs[i % copies])


def topk(n, k, type="f32", copies=1):
    xs = rotated(lambda: torch.randn(n, dtype=types[type]), copies)
    return lambda i: torch.topk(xs[i % copies], k)


def fastest(candidates):
    """Of several ways to the same result, the fastest here; one that this version does not have is left out."""
    best, chosen = None, None
    for make in candidates:
        try:
            f = make()
            f(0)
        except Exception:
            continue
        seconds = 1e9
        for i in range(10):
            start = time.perf_counter()
            f(i)
            f(i + 1)
            seconds = min(seconds, time.perf_counter() - start)
        if best is None or seconds < best:
            best, chosen = seconds, f
    return chosen


def matmul(m, n, k, type="f32", copies=1):
    """[m, k] times [k, n], by the BLAS it was built with, or by oneDNN with packed weights where that is faster."""
    return linear(m, n, k, type, "", copies, bias=False)


def linear(m, n, k, type="f32", activation="", copies=1, bias=True):
    """[m, k] times [n, k] transposed, plus bias; `activation` relu, silu ..."""
    a = torch.randn(m, k, dtype=types[type])
    c = torch.empty(m, n, dtype=types[type])
    b = torch.randn(n, dtype=types[type]) if bias else None
    g = getattr(torch.nn.functional, activation) if activation else None

    def then(f):
        return (lambda i: g(f(i))) if g else f

    def columns():
        ws = rotated(lambda: torch.randn(k, n, dtype=types[type]), copies)
        if bias:
            return then(lambda i: torch.addmm(b, a, ws[i % copies], out=c))
        return then(lambda i: torch.mm(a, ws[i % copies], out=c))

    def rows():
        ws = rotated(lambda: torch.randn(n, k, dtype=types[type]), copies)
        f = torch.nn.functional.linear
        return then(lambda i: f(a, ws[i % copies], b))

    def vector():
        if m != 1:
            raise ValueError
        ws, x, y = rotated(lambda: torch.randn(n, k, dtype=types[type]), copies), a[0], c[0]
        if bias:
            return then(lambda i: torch.addmv(b, ws[i % copies], x, out=y))
        return then(lambda i: torch.mv(ws[i % copies], x, out=y))

    def packed():
        ws = rotated(lambda: torch.ops.mkldnn._reorder_linear_weight(torch.randn(n, k, dtype=types[type]), m), copies)
        f, after = torch.ops.mkldnn._linear_pointwise, activation if activation == "relu" else "none"
        if after == "relu":
            return lambda i: f(a, ws[i % copies], b, after, [], "")
        return then(lambda i: f(a, ws[i % copies], b, after, [], ""))

    return fastest([columns, rows, vector, packed])


def scan_topk(n, d, k, copies=1):
    """Scores of n rows against one vector, then the best k."""
    xs = rotated(lambda: torch.randn(n, d), copies)
    q, scores = torch.randn(d), torch.empty(n)

    def run(i):
        torch.mv(xs[i % copies], q, out=scores)
        torch.topk(scores, k)

    return run


def scan_topk_batch(n, d, k, b, copies=1):
    """Scores of n rows against b vectors, then the best k of each."""
    xs = rotated(lambda: torch.randn(n, d), copies)
    q, scores = torch.randn(b, d), torch.empty(b, n)

    def run(i):
        torch.mm(q, xs[i % copies].t(), out=scores)
        torch.topk(scores, k, 1)

    return run


def interests(batch, length, width, hidden, interests):
    """ComiRec-SA on a padded batch."""
    x, positions = torch.randn(batch, length, width), torch.randn(length, width)
    w1, w2 = torch.randn(width, hidden) / 8, torch.randn(hidden, interests) / 16
    model = Interests(positions, w1, w2).eval()
    traced = torch.jit.freeze(torch.jit.trace(model, x))
    return fastest([lambda: lambda i: model(x), lambda: lambda i: traced(x)])


class Interests(torch.nn.Module):
    def __init__(self, positions, w1, w2):
        super().__init__()
        self.positions, self.w1, self.w2 = (torch.nn.Parameter(v) for v in (positions, w1, w2))

    def forward(self, x):
        a = torch.softmax(torch.tanh((x + self.positions) @ self.w1) @ self.w2, 1)
        return a.transpose(1, 2) @ x


def interests_train(batch, length, width, hidden, interests):
    """Forward and backward."""
    model = Interests(torch.randn(length, width), torch.randn(width, hidden) / 8, torch.randn(hidden, interests) / 16)
    x, dz = torch.randn(batch, length, width, requires_grad=True), torch.full((batch, interests, width), 0.1)

    def run(i):
        with torch.enable_grad():
            model(x).backward(dz)

    return run


def interests_routing(batch, length, width, hidden, interests):
    """ComiRec-DR on a padded batch, three iterations."""
    x, s, start = torch.randn(batch, length, width), torch.randn(width, width) / 8, torch.randn(interests, length)

    def run(i):
        u = x @ s
        b = start.expand(batch, interests, length)
        for iteration in range(3):
            v = torch.softmax(b, 1) @ u
            square = (v * v).sum(2, keepdim=True)
            z = torch.sqrt(square) / (1 + square) * v
            if iteration < 2:
                b = b + z @ u.transpose(1, 2)
        return z

    return run


def fft_round_trip(batch, length, channels):
    """rfft and irfft along the middle axis."""
    x = torch.randn(batch, length, channels)
    return lambda i: torch.fft.irfft(torch.fft.rfft(x, dim=1), n=length, dim=1)


def fft_filter(batch, length, channels):
    """rfft, a product with one complex row per frequency, irfft."""
    x = torch.randn(batch, length, channels)
    w = torch.randn(length // 2 + 1, channels, dtype=torch.complex64)
    return lambda i: torch.fft.irfft(torch.fft.rfft(x, dim=1) * w, n=length, dim=1)


def fft_filter_step(batch, length, channels):
    """The same, then the gradients of x and of the frequencies' rows."""
    x = torch.randn(batch, length, channels, requires_grad=True)
    w = torch.randn(length // 2 + 1, channels, dtype=torch.complex64, requires_grad=True)
    dy = torch.randn(batch, length, channels)

    def run(i):
        with torch.enable_grad():
            y = torch.fft.irfft(torch.fft.rfft(x, dim=1) * w, n=length, dim=1)
        return torch.autograd.grad(y, [x, w], dy)

    return run


def autocorr(batch, length, channels):
    """FEARec's attention in inference: the lags of each sequence by the correlation of q and k, values delayed by them, gathered."""
    q, k, v = (torch.randn(batch, length, channels) for _ in range(3))
    m = max(1, int(math.log(length)))
    place = torch.arange(length)[None, :, None]

    def correlation():
        f = (torch.fft.rfft(q, dim=1) * torch.conj(torch.fft.rfft(k, dim=1))).mean(2)  # one inverse for all channels
        return torch.fft.irfft(f, n=length, dim=1)

    def rolled(i):
        r, lags = torch.topk(correlation(), m, dim=1)
        p, twice, out = torch.softmax(r, 1), torch.cat([v, v], 1), 0
        for j in range(m):
            at = ((place[:, :, 0] + lags[:, j:j + 1])[:, :, None]).expand(-1, -1, channels)
            out = out + p[:, j, None, None] * torch.gather(twice, 1, at)
        return out

    def product(i):  # the weights as a circulant matrix
        r, lags = torch.topk(correlation(), m, dim=1)
        w = torch.zeros(batch, length, length)
        w.scatter_(2, (place + lags[:, None, :]) % length, torch.softmax(r, 1)[:, None, :].expand(-1, length, -1))
        return torch.bmm(w, v)

    return fastest([lambda: rolled, lambda: product])


def farm_module(batch, length, channels):
    """Two bands with gains from an MLP of the mean: by transform, or by a projection made beforehand."""
    F = torch.nn.functional
    x, bins = torch.randn(batch, length, channels), length // 2 + 1
    keep = max(1, math.ceil(0.25 * bins))
    w1, b1, w2, b2 = torch.randn(channels, channels) / 8, torch.zeros(channels), torch.randn(2, channels) / 8, torch.zeros(2)
    low = torch.zeros(bins)
    low[:keep] = 1
    p = torch.fft.irfft(torch.fft.rfft(torch.eye(length), dim=0) * low[:, None], n=length, dim=0)

    def gains():
        return torch.sigmoid(F.linear(torch.relu(F.linear(x.mean(1), w1, b1)), w2, b2))

    def transformed(i):
        g = gains()
        w = g[:, 1:, None] + (g[:, :1, None] - g[:, 1:, None]) * low[None, :, None]
        return torch.fft.irfft(torch.fft.rfft(x, dim=1) * w, n=length, dim=1)

    def projected(i):
        g = gains()
        return g[:, 1:, None] * x + (g[:, :1, None] - g[:, 1:, None]) * torch.matmul(p, x)

    return fastest([lambda: transformed, lambda: projected])


def spectral_features(batch, length, channels):
    x = torch.randn(batch, length, channels)

    def run(i):
        f = torch.fft.rfft(x, dim=1)
        return torch.sqrt(f.real * f.real + f.imag * f.imag + 1e-6)

    return run


def trained(make_model, make_step):
    """A training step of a model of this version's fastest kind: eager, with each form of Adam that there is."""
    def with_adam(**kind):
        def make():
            torch.manual_seed(1)
            model = make_model()
            adam = torch.optim.Adam(model.parameters(), lr=1e-3, **kind)
            step = make_step(model)

            def run(i):
                with torch.enable_grad():
                    adam.zero_grad(set_to_none=True)
                    step()
                    adam.step()

            return run

        return make

    return [with_adam(), with_adam(foreach=True), with_adam(fused=True)]


def mlp_train(batch, widths):
    """Forward, binary cross-entropy, backward and Adam of linear layers with ReLU between."""
    nn = torch.nn
    x, labels = torch.randn(batch, widths[0]), torch.randint(0, 2, (batch, 1)).float()

    def model():
        layers = []
        for i in range(len(widths) - 1):
            layers += [nn.Linear(widths[i], widths[i + 1]), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers[:-1])

    def step(model):
        return lambda: nn.functional.binary_cross_entropy_with_logits(model(x), labels).backward()

    return fastest(trained(model, step))


class Block(torch.nn.Module):
    """What TransformerEncoderLayer computes, batch first, with as few copies as can be."""

    def __init__(self, width, heads, hidden, causal, length):
        super().__init__()
        nn = torch.nn
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.project, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mask = torch.full((length, length), float("-inf")).triu(1) if causal else None
        self.fused = getattr(nn.functional, "scaled_dot_product_attention", None)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.project(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.fused:
            a = self.fused(q, k, v, is_causal=self.mask is not None)
        else:
            scores = (q * self.scale) @ k.transpose(2, 3)
            if self.mask is not None:
                scores = scores + self.mask
            a = torch.softmax(scores, -1) @ v
        h = self.norm1(x + self.out(a.transpose(1, 2).reshape(b, n, d)))
        return self.norm2(h + self.down(torch.relu(self.up(h))))


def transformer_train(batch, length, width, heads, hidden, causal=False):
    """Forward, backward from a given gradient of the output, to the input too, and Adam of a post-norm block without dropout."""
    nn = torch.nn
    mask = torch.full((length, length), float("-inf")).triu(1) if causal else None

    def layer(batch_first):
        return lambda: nn.TransformerEncoderLayer(width, heads, hidden, dropout=0.0, batch_first=batch_first)

    def step(batch_first, **arguments):
        def make(model):
            shape = (batch, length, width) if batch_first else (length, batch, width)
            x, dy = torch.randn(shape, requires_grad=True), torch.randn(shape)

            def run():
                x.grad = None
                model(x, **arguments).backward(dy)

            return run

        return make

    own = trained(lambda: Block(width, heads, hidden, causal, length), step(True))
    return fastest(
        trained(layer(True), step(True, src_mask=mask)) + trained(layer(False), step(False, src_mask=mask)) + own)


def bags(rows, bags, longest, copies):
    """Ids and offsets of bags of 1 to `longest` ids."""
    out = []
    for _ in range(copies):
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.randint(1, longest + 1, (bags,)).cumsum(0)])
        out.append((torch.randint(0, rows, (int(offsets[-1]),)), offsets))
    return out


def embedding_bag(rows, cols, bags_, longest, type="f32", copies=1):
    """Sums of the rows of a table per bag."""
    table = torch.randn(rows, cols).to(types[type])
    f = torch.nn.functional.embedding_bag

    def with_ids(kind):
        def make():
            data = [(i.to(kind), o.to(kind)) for i, o in bags(rows, bags_, longest, copies)]
            return lambda i: f(data[i % copies][0], table, data[i % copies][1], mode="sum", include_last_offset=True)

        return make

    return fastest([with_ids(torch.int64), with_ids(torch.int32)])


def embedding_train(rows, cols, bags_, longest, copies=1):
    """Gradient by rows of the sums, from a given gradient of theirs, and SparseAdam."""
    layer = torch.nn.EmbeddingBag(rows, cols, mode="sum", sparse=True, include_last_offset=True)
    adam = torch.optim.SparseAdam(list(layer.parameters()))
    data, dy = bags(rows, bags_, longest, copies), torch.randn(bags_, cols)

    def run(i):
        with torch.enable_grad():
            adam.zero_grad(set_to_none=True)
            layer(*data[i % copies]).backward(dy)
            adam.step()

    return run


def infonce(rows, candidates, width, train, symmetric):
    """Softmax cross-entropy of u v^T / temperature against one positive a row, and, if symmetric, one a column."""
    f = torch.nn.functional.cross_entropy
    u, v = (torch.randn(n, width) / width**0.5 for n in (rows, candidates))
    scale, positives = torch.tensor(10.0).log(), torch.arange(rows) % candidates
    if not train:
        return lambda i: f(u @ v.t() * scale.exp(), positives)
    for x in (u, v, scale):
        x.requires_grad_()

    def scaled_logits():  # the fewer numbers take the factor
        return (u * scale.exp()) @ v.t()

    def run(i):
        with torch.enable_grad():
            u.grad = v.grad = scale.grad = None
            z = scaled_logits()
            loss = (f(z, positives) + f(z.t(), positives)) / 2 if symmetric else f(z, positives)
            loss.backward()

    return run


def align_pooled(users, longest, width, train, copies=1):
    """Means of two sequences of 1 to `longest` rows a user, scaled to length 1, in a symmetric in-batch loss."""
    f, own = torch.nn.functional, torch.arange(users)
    copies = min(copies, 4)  # more than any cache holds

    def loss(a, b):
        z = (10 * f.normalize(a)) @ f.normalize(b).t()
        return (f.cross_entropy(z, own) + f.cross_entropy(z.t(), own)) / 2

    def run_on(sides, mean):
        def run(i):
            sets = [(side[i % copies], lengths) for side, lengths in sides]
            with torch.set_grad_enabled(train):
                value = loss(*(mean(x, lengths) for x, lengths in sets))
                if train:
                    for x, _ in sets:
                        x.grad = None
                    value.backward()

        return run

    def make(padded):
        sides = []
        for _ in range(2):
            lengths = torch.randint(1, longest + 1, (users,))
            kept = torch.arange(longest)[None, :, None] < lengths[:, None, None]
            shape = (users, longest, width) if padded else (int(lengths.sum()), width)
            side = [torch.randn(shape) for _ in range(copies)]
            for x in side:
                if padded:
                    x.mul_(kept)
                x.requires_grad_(train)
            sides.append((side, lengths))
        return sides

    def bags():
        return run_on(make(False), lambda x, lengths: f.embedding_bag(torch.arange(len(x)), x, lengths.cumsum(0) - lengths,
                                                                       mode="mean"))

    def padded():  # rows behind the end are zeros; the gradient there is of no use to anyone
        return run_on(make(True), lambda x, lengths: x.sum(1) / lengths[:, None])

    def segments():
        return run_on(make(False), lambda x, lengths: torch.segment_reduce(x, "mean", lengths=lengths, axis=0))

    return fastest([bags, padded, segments])


def gumbel_top_k(n, k):
    """The k largest of logits plus Gumbel numbers."""
    logits, e = torch.randn(n), torch.empty(n)

    def run(i):
        e.exponential_().log_()
        return torch.topk(logits - e, k)

    return run


def ranking_loss(kind, groups, n, positives=0.1, copies=1):
    """Value and gradient of a loss of `groups` lists of n scores, all of one length, as a person would write it batched."""
    softplus = torch.nn.functional.softplus
    ys = torch.randint(0, 5, (copies, groups, n)).float()
    first = max(1, round(positives * n))
    ss = [torch.randn(groups, n, requires_grad=True) for _ in range(copies)]
    d = 1 / torch.log2(torch.arange(2, n + 2).float())

    def loss(s, y):
        if kind == "logistic":
            return softplus(s[:, None, first:] - s[:, :first, None]).mean()
        if kind == "squared_hinge":
            return torch.relu(1 - s[:, :first, None] + s[:, None, first:]).square().mean()
        if kind == "listnet":
            return -(torch.softmax(y, 1) * torch.log_softmax(s, 1)).sum(1).mean()
        if kind == "softmax":
            return (torch.logsumexp(s, 1) - s[:, :first].mean(1)).mean()
        if kind == "listmle":
            z = s.gather(1, torch.sort(y, stable=True, dim=1, descending=True)[1])
            return (z.flip(1).logcumsumexp(1).flip(1) - z).sum(1).mean()
        pair, x = y[:, :, None] > y[:, None, :], softplus(s[:, None, :] - s[:, :, None])
        if kind == "ranknet":
            return torch.where(pair, x, torch.zeros(())).sum() / groups
        with torch.no_grad():  # lambdarank
            rank = s.argsort(1, descending=True).argsort(1)
            gain, place = torch.exp2(y) - 1, d[rank]
            ideal = (gain.sort(1, descending=True)[0] * d).sum(1)[:, None, None]
            w = torch.where(pair, (gain[:, :, None] - gain[:, None, :]) * (place[:, :, None] - place[:, None, :]).abs() / ideal, torch.zeros(()))
        return (w * x).sum() / groups

    def run(i):
        with torch.enable_grad():
            s = ss[i % copies]
            s.grad = None
            loss(s, ys[i % copies]).backward()

    return run


def chorus_cvr(n, copies=1):
    """ChorusCVR's six terms over n impressions, value and gradient; probabilities are clipped, as reproductions do."""
    f = torch.nn.functional.binary_cross_entropy_with_logits
    data = []
    for _ in range(copies):
        o = (torch.rand(n) < 0.2).float()
        data.append(([torch.randn(n, requires_grad=True) for _ in range(3)], o, o * (torch.rand(n) < 0.1).float()))

    def run(i):
        (a, b, c), o, r = data[i % copies]
        for x in (a, b, c):
            x.grad = None
        with torch.enable_grad():
            p, q, u = torch.sigmoid(a), torch.sigmoid(b), torch.sigmoid(c)
            w, v = o / p.detach().clamp(min=0.01), (1 - o) / (1 - p.detach()).clamp(min=0.01)
            clicks = o.sum()
            product = lambda t, x: -(t * torch.log(x.clamp(min=1e-7)) + (1 - t) * torch.log((1 - x).clamp(min=1e-7))).mean()
            loss = product(r, p * q) + product(o - r, p * u) + f(a, o)
            loss = loss + (w * (f(b, r, reduction="none") + f(c, 1 - r, reduction="none"))).sum() / clicks
            gap = f(b, 1 - u.detach(), reduction="none") + f(c, 1 - q.detach(), reduction="none")
            loss = loss + (w * gap).sum() / clicks + (v * gap).sum() / (n - clicks)
            loss.backward()

    return run


class Chain(torch.nn.Module):
    """A function as a module, which is what can be frozen."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x)


def ddim(batch, width, hidden, steps):
    """A chain of DDIM steps around an MLP width-hidden-hidden-width with SiLU, the step's embedding in the first layer's bias."""
    f = torch.nn.functional
    w0, w1, w2 = torch.randn(hidden, width) / 8, torch.randn(hidden, hidden) / 16, torch.randn(width, hidden) / 16
    b0, b1, b2 = torch.randn(steps, hidden).unbind(0), torch.randn(hidden), torch.randn(width)
    start = torch.randn(batch, width)
    a = [0.9] * steps

    def chain(x):
        for i in range(steps):
            h = f.silu(f.linear(x, w0, b0[i]), inplace=True)
            h = f.silu(f.linear(h, w1, b1), inplace=True)
            x = (x * a[i]).add_(f.linear(h, w2, b2), alpha=0.1)
        return x

    def traced():
        module = torch.jit.freeze(torch.jit.trace(Chain(chain).eval(), start))
        return lambda i: module(start)

    return fastest([lambda: lambda i: chain(start), traced])


def cdm_model(features, pool, hidden):
    """Query, key, value and student of CDM, and its rows: features, relevance standardised and as it is."""
    nn = torch.nn
    d = features + 2
    model = nn.ModuleDict({"query": nn.Linear(d, d), "key": nn.Linear(d, d, bias=False), "value": nn.Linear(d, d, bias=False),
                           "first": nn.Linear(5 * d, hidden), "last": nn.Linear(hidden, 1)})

    def forward(e, pools, every=None, first=0):
        """e [B, N, d], pools [B, M]; or a piece of `every` from `first` on."""
        context = torch.gather(e if every is None else every, 1, pools[..., None].expand(-1, -1, d))
        keys, values = model["key"](context), model["value"](context)
        folded = keys @ model["query"].weight
        s = torch.baddbmm((keys @ model["query"].bias)[:, None, :], e, folded.transpose(1, 2))
        b, place = ((pools >= first) & (pools < first + e.shape[1])).nonzero(as_tuple=True)
        own = (b, pools[b, place] - first, place)  # an item does not look at itself
        s[own] = -1e30
        p = torch.softmax(s, -1) @ values
        s = -s
        s[own] = -1e30
        n = torch.softmax(s, -1) @ values
        return model["last"](torch.relu(model["first"](torch.cat([e, p, n, e * p, e * n], -1))))[..., 0]

    return model, forward


def cdm_rows(requests, n, features):
    x = torch.nn.functional.normalize(torch.randn(requests, n, features), dim=-1)
    r = torch.rand(requests, n)
    z = (r - r.mean(1, keepdim=True)) / r.std(1, unbiased=False, keepdim=True)
    return torch.cat([x, z[..., None], r[..., None]], -1), z


def cdm_rank(n, features, pool, hidden):
    """Logits of one request from its rows, pool included, all candidates at once or as many pieces as are fastest."""
    model, forward = cdm_model(features, pool, hidden)
    e, z = cdm_rows(1, n, features)

    def pieces(size):
        def make():
            return lambda i: [forward_piece(forward, e, torch.topk(z, min(pool, n)).indices, first, size) for first in range(0, n, size)]

        return make

    return fastest([pieces(n)] + [pieces(size) for size in (512, 4096) if size < n])


def forward_piece(forward, e, pools, first, size):
    return forward(e[:, first:first + size], pools, e, first)


def cdm_train(requests, n, features, pool, hidden):
    """Forward with pools drawn by Gumbel top-k, binary cross-entropy, backward and Adam."""
    e, z = cdm_rows(requests, n, features)
    labels = (torch.rand(requests, n) < 0.1).float()

    def make():
        model, forward = cdm_model(features, pool, hidden)
        model.run = forward
        return model

    def step(model):
        def run():
            keys = z / 0.1 - torch.log(-torch.log(torch.rand_like(z)))
            logits = model.run(e, torch.topk(keys, pool).indices)
            torch.nn.functional.binary_cross_entropy_with_logits(logits, labels).backward()

        return run

    return fastest(trained(make, step))


def dpp_nll(n, d, k):
    """Value and gradient of the likelihood of a subset in its dual form, in double."""
    f = torch.randn(n, d, dtype=torch.float64, requires_grad=True)
    q = torch.rand(n, dtype=torch.float64).requires_grad_()
    chosen, eye_d, eye_k = torch.randperm(n)[:k], 1.001 * torch.eye(d, dtype=torch.float64), 1e-3 * torch.eye(k, dtype=torch.float64)

    def run(i):
        with torch.enable_grad():
            f.grad = q.grad = None
            v = q[:, None] * f
            y = v[chosen]
            loss = 2 * torch.linalg.cholesky(v.T @ v + eye_d).diagonal().log().sum()
            (loss - 2 * torch.linalg.cholesky(y @ y.T + eye_k).diagonal().log().sum()).backward()

    return run


def sequence_value(lists, slots, train):
    """V_k = r_k + c_k V_(k+1) of all lists at once, slots major."""
    r, c = torch.rand(slots, lists), torch.rand(slots, lists)
    if train:
        r.requires_grad_()
        c.requires_grad_()

    def value():
        v = torch.zeros(lists)
        for k in range(slots - 1, -1, -1):
            v = torch.addcmul(r[k], c[k], v)
        return v

    def run(i):
        if not train:
            return value()
        with torch.enable_grad():
            r.grad = c.grad = None
            value().sum().backward()

    return run


def sign_search(n, l):
    """The 100 nearest of 64-bit signatures: products of vectors of signs, then topk."""
    signs = lambda rows: torch.randint(0, 2, (rows, 64)).float() * 2 - 1
    q, e = signs(n), signs(l).T.contiguous()
    return lambda i: torch.topk(q @ e, 100)


def eta_full(n, l):
    """Target attention over everything, 4 heads of 16: what the search saves."""
    q, e = torch.randn(4, n, 16), torch.randn(4, l, 16)
    return lambda i: torch.softmax(q @ e.transpose(1, 2) * 0.25, -1) @ e


def eta_hash(n, l):
    e, planes = torch.randn(l, 64), torch.randn(64, 64)
    powers = 2 ** torch.arange(63)
    return lambda i: ((e @ planes)[:, :63] >= 0).long() @ powers


def _sdim(rows):
    x, planes, powers = torch.randn(rows, 64), torch.randn(64, 48), torch.tensor([1, 2, 4])
    first = 8 * torch.arange(16)
    return x, lambda: ((x @ planes).view(rows, 16, 3) >= 0).long().mul_(powers).sum(2).add_(first)


def sdim_lookup(n, l):
    _, codes = _sdim(n)
    table = torch.randn(128, 64)
    return lambda i: table[codes()].mean(1)


def sdim_build(n, l):
    x, codes = _sdim(l)

    def run(i):
        table = torch.zeros(128, 64)
        c = codes()
        for t in range(16):
            table.index_add_(0, c[:, t], x)
        return torch.nn.functional.normalize(table, dim=1)

    return run


def sdim_scan(n, l):
    """Without tables: collisions of every candidate with every behaviour, group by group."""
    _, of_candidates = _sdim(n)
    e, of_history = _sdim(l)
    h = of_history()

    def run(i):
        c = of_candidates()
        y = 0
        for t in range(16):
            y = y + torch.nn.functional.normalize((c[:, t, None] == h[None, :, t]).float() @ e, dim=1)
        return y / 16

    return run


def sim_pooled(n, l):
    q, e, wq, wk = torch.randn(n, 64), torch.randn(l, 64), torch.randn(64, 64), torch.randn(64, 64)
    return lambda i: (((q @ wq) @ wk) @ e.T) @ e


def sim_pooled_train(n, l):
    q, e, wq, wk = (torch.randn(*s, requires_grad=True) for s in ((n, 64), (l, 64), (64, 64), (64, 64)))
    g = torch.randn(n, 64)

    def run(i):
        with torch.enable_grad():
            q.grad = e.grad = wq.grad = wk.grad = None
            ((((q @ wq) @ wk) @ e.T) @ e).backward(g)

    return run


def sim_search(n, l):
    q, keys, wq = torch.randn(n, 64), torch.randn(l, 64), torch.randn(64, 64)
    return lambda i: torch.topk((q @ wq) @ keys.T, 100)


def sim_index(n, l):
    category = torch.randint(0, 200, (l,))
    return lambda i: torch.sort(category, stable=True)


def sim_exact(n, l):
    """nn.MultiheadAttention of each candidate over 100 gathered rows with their time embeddings."""
    q, e, table = torch.randn(n, 1, 64), torch.randn(l, 64), torch.randn(16, 8)
    index, bucket = torch.randint(0, l, (n, 100)), torch.randint(0, 16, (l,))
    mha = torch.nn.MultiheadAttention(64, 4, kdim=72, vdim=72, batch_first=True).eval()

    def run(i):
        kv = torch.cat([e[index], table[bucket[index]]], 2)
        return mha(q, kv, kv, need_weights=False)[0]

    return run


class DinUnit(torch.nn.Module):
    """Candidates [B, n, 64] over histories [B, l, 64], the concatenation as the authors write it."""

    def __init__(self, dice=False):
        super().__init__()
        self.l1, self.l2, self.l3 = torch.nn.Linear(256, 80), torch.nn.Linear(80, 40), torch.nn.Linear(40, 1)
        self.dice = dice
        self.a1, self.a2 = torch.nn.Parameter(torch.zeros(80)), torch.nn.Parameter(torch.zeros(40))
        self.n1, self.n2 = torch.nn.BatchNorm1d(80, affine=False), torch.nn.BatchNorm1d(40, affine=False)

    def rows(self, q, e):
        shape = (q.shape[0], q.shape[1], e.shape[1], 64)
        q, e = q[:, :, None].expand(shape), e[:, None].expand(shape)
        return torch.cat([q, e, q - e, q * e], -1).view(-1, 256)

    def act(self, x, a, n):
        if not self.dice:
            return torch.sigmoid(x)
        p = torch.sigmoid(n(x))
        return x * (p + (1 - p) * a)

    def forward(self, q, e):
        x = self.act(self.l1(self.rows(q, e)), self.a1, self.n1)
        a = self.l3(self.act(self.l2(x), self.a2, self.n2)).view(q.shape[0], q.shape[1], e.shape[1])
        return a @ e


def din_first(users, n, l):
    model, q, e = DinUnit(), torch.randn(users, n, 64), torch.randn(users, l, 64)
    return lambda i: model.l1(model.rows(q, e))


def din(users, n, l, dice=False):
    model, q, e = DinUnit(dice).eval(), torch.randn(users, n, 64), torch.randn(users, l, 64)
    traced = torch.jit.freeze(torch.jit.trace(model, (q, e)))
    return fastest([lambda: lambda i: model(q, e), lambda: lambda i: traced(q, e)])


def din_dice(users, n, l):
    return din(users, n, l, True)


def din_train(users, n, l):
    model, dy = DinUnit(), torch.full((users, n, 64), 0.1)
    q, e = torch.randn(users, n, 64, requires_grad=True), torch.randn(users, l, 64, requires_grad=True)

    def run(i):
        with torch.enable_grad():
            q.grad = e.grad = None
            model.zero_grad(set_to_none=True)
            model(q, e).backward(dy)

    return run


def dispatcher(length, heads=2, width=32, experts=32, backward=False):
    """Both passes of linear dispatcher attention on projected rows: experts over tokens, tokens over experts."""
    def rows(n):
        return torch.randn(1, heads, n, width)

    q1, k1, v1, q2, k2, v2 = rows(experts), rows(length), rows(length), rows(length), rows(experts), rows(experts)
    d1, d2 = rows(experts), rows(length)
    scale = width ** -0.5

    def by_hand(q, k, v):
        return torch.softmax((q * scale) @ k.transpose(-1, -2), -1) @ v

    def both(attend):
        if not backward:
            def run(i):
                attend(q1, k1, v1)
                attend(q2, k2, v2)
            return run
        leaves = [t.clone().requires_grad_() for t in (q1, k1, v1, q2, k2, v2)]

        def train(i):
            with torch.enable_grad():
                a, b = attend(*leaves[:3]), attend(*leaves[3:])
                torch.autograd.grad([a, b], leaves, [d1, d2])
        return train

    fused = getattr(torch.nn.functional, "scaled_dot_product_attention", None)
    ways = [lambda: both(by_hand)]
    if fused is not None:
        ways.append(lambda: both(fused))
    return fastest(ways)


def mmoe_weights(inputs, experts, outputs, tasks, type="f32"):
    scale = inputs**-0.5
    make = lambda *shape: (torch.rand(*shape) * 2 - 1) * scale
    return [w.to(types[type]) for w in (make(experts * outputs, inputs), make(experts * outputs), make(tasks * experts, inputs))]


def mmoe(batch, inputs, experts, outputs, tasks, type="f32", copies=1):
    """E relu experts, a softmax gate per task, mixed: all experts one product, the fastest of the ways to write it."""
    F = torch.nn.functional
    x = torch.randn(batch, inputs, dtype=types[type])

    def mix(a, g):
        g = torch.softmax(g.view(batch, tasks, experts), -1)
        return torch.bmm(g, a.view(batch, experts, outputs)).view(batch, -1)

    def rows():
        ws = rotated(lambda: mmoe_weights(inputs, experts, outputs, tasks, type), copies)

        def run(i):
            w, b, v = ws[i % copies]
            return mix(F.linear(x, w, b).relu_(), F.linear(x, v))

        return run

    def columns():
        ws = rotated(lambda: [w.t().contiguous() if w.dim() == 2 else w for w in mmoe_weights(inputs, experts, outputs, tasks, type)], copies)
        a = torch.empty(batch, experts * outputs, dtype=types[type])
        g = torch.empty(batch, tasks * experts, dtype=types[type])

        def run(i):
            w, b, v = ws[i % copies]
            return mix(torch.addmm(b, x, w, out=a).relu_(), torch.mm(x, v, out=g))

        return run

    def one_product():
        def joined():
            w, b, v = mmoe_weights(inputs, experts, outputs, tasks, type)
            return torch.cat([w, v]), torch.cat([b, torch.zeros(tasks * experts, dtype=types[type])])

        ws = rotated(joined, copies)

        def run(i):
            z = F.linear(x, *ws[i % copies])
            return mix(z[:, : experts * outputs].relu(), z[:, experts * outputs :].contiguous())

        return run

    def packed():  # by oneDNN
        def one():
            w, b, v = mmoe_weights(inputs, experts, outputs, tasks, type)
            reorder = torch.ops.mkldnn._reorder_linear_weight
            return reorder(w, batch), b, reorder(v, batch)

        ws = rotated(one, copies)
        f = torch.ops.mkldnn._linear_pointwise

        def run(i):
            w, b, v = ws[i % copies]
            return mix(f(x, w, b, "relu", [], ""), f(x, v, None, "none", [], ""))

        return run

    def traced():
        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.w, self.b, self.v = (torch.nn.Parameter(p, False) for p in mmoe_weights(inputs, experts, outputs, tasks, type))

            def forward(self, x):
                return mix(F.linear(x, self.w, self.b).relu_(), F.linear(x, self.v))

        models = rotated(lambda: torch.jit.freeze(torch.jit.trace(Model().eval(), x)), copies)
        return lambda i: models[i % copies](x)

    return fastest([rows, columns, one_product, packed, traced])


def mmoe_train(batch, inputs, experts, outputs, tasks, copies=1):
    """Forward and the gradients of input and parameters."""
    F = torch.nn.functional
    ws = rotated(lambda: [w.requires_grad_() for w in mmoe_weights(inputs, experts, outputs, tasks)], copies)
    x, dy = torch.randn(batch, inputs, requires_grad=True), torch.randn(batch, tasks * outputs)

    def step(forward):
        def make():
            def run(i):
                with torch.enable_grad():
                    w, b, v = ws[i % copies]
                    return torch.autograd.grad(forward(w, b, v), [x, w, b, v], dy)

            return run

        return make

    def bmm(w, b, v):
        g = torch.softmax(F.linear(x, v).view(batch, tasks, experts), -1)
        return torch.bmm(g, F.linear(x, w, b).relu_().view(batch, experts, outputs)).view(batch, -1)

    def einsum(w, b, v):
        g = torch.softmax(F.linear(x, v).view(batch, tasks, experts), -1)
        return torch.einsum("bte,beh->bth", g, F.linear(x, w, b).relu().view(batch, experts, outputs)).reshape(batch, -1)

    def products(w, b, v):
        g = torch.softmax(F.linear(x, v).view(batch, tasks, experts), -1)
        a = F.linear(x, w, b).relu_().view(batch, experts, outputs)
        return (g.unsqueeze(-1) * a.unsqueeze(1)).sum(2).view(batch, -1)

    return fastest([step(bmm), step(einsum), step(products)])


class Ple(torch.nn.Module):
    """Levels of (widths of an expert, experts of each task, shared experts). On the first level all read the same columns: one product;
    deeper layers, and the experts of later levels, are batched products."""

    def __init__(self, inputs, tasks, levels):
        super().__init__()
        self.tasks, self.levels = tasks, levels
        p = lambda *s: torch.nn.Parameter(torch.randn(*s) / s[-2]**0.5)
        for l, (widths, own, shared) in enumerate(levels):
            experts, last = tasks * own + shared, l + 1 == len(levels)
            sizes = [inputs] + widths
            first = p(inputs, experts * widths[0]) if l == 0 else p(experts, inputs, widths[0])
            weights = [first] + [p(experts, sizes[i], sizes[i + 1]) for i in range(1, len(widths))]
            biases = [torch.nn.Parameter(torch.zeros(experts, 1, h)) for h in widths]
            gates = [p(inputs, own + shared) for _ in range(tasks)] + ([] if last else [p(inputs, experts)])
            for name, group in (("w", weights), ("b", biases), ("g", gates)):
                setattr(self, f"{name}{l}", torch.nn.ParameterList(group))
            inputs = widths[-1]

    def forward(self, x):
        batch, state = x.shape[0], None
        for l, (widths, own, shared) in enumerate(self.levels):
            experts = self.tasks * own + shared
            w, b, g = getattr(self, f"w{l}"), getattr(self, f"b{l}"), getattr(self, f"g{l}")
            if l == 0:
                a = torch.relu((x @ w[0]).view(batch, experts, widths[0]).transpose(0, 1) + b[0])
                state = [x] * (self.tasks + 1)
            else:
                copies = [own] * self.tasks + [shared]
                a = torch.cat([s.expand(n, -1, -1) for s, n in zip(state, copies)])
                a = torch.relu(torch.baddbmm(b[0], a, w[0]))
            for i in range(1, len(widths)):
                a = torch.relu(torch.baddbmm(b[i], a, w[i]))
            out = []
            for t, gate in enumerate(g):
                seen = a if t == self.tasks else torch.cat([a[t * own:(t + 1) * own], a[self.tasks * own:]])
                out.append(torch.einsum("be,ebh->bh", torch.softmax(state[t] @ gate, 1), seen))
            state = out
        return torch.cat(state, 1)


def ple(batch, inputs, tasks, levels, copies=1):
    x = torch.randn(batch, inputs)
    models = [Ple(inputs, tasks, levels).eval() for _ in range(copies)]
    traced = [torch.jit.freeze(torch.jit.trace(m, x)) for m in models]
    return fastest([lambda: lambda i: models[i % copies](x), lambda: lambda i: traced[i % copies](x)])


def ple_train(batch, inputs, tasks, levels, copies=1):
    model, x = Ple(inputs, tasks, levels), torch.randn(batch, inputs, requires_grad=True)
    parameters = [x] + list(model.parameters())

    def run(i):
        with torch.enable_grad():
            y = model(x)
            return torch.autograd.grad(y, parameters, y.detach())

    return run


class Home(torch.nn.Module):
    """HoME as it serves (batch norm folded): two categories of three tasks, groups of two experts and one of each task's own. What reads
    the same input is one product, what is of one shape a batched one."""

    def __init__(self, inputs=512, middle=256, outputs=128, bare=False):
        super().__init__()
        self.bare, self.sizes = bare, (inputs, middle, outputs)
        p = lambda *s: torch.nn.Parameter(torch.randn(*s) / s[-2]**0.5)
        zeros = lambda *s: torch.nn.Parameter(torch.zeros(*s))
        if not bare:  # feature gates: two pairs of rank half the input for each of 3 and 9 groups
            self.down, self.up, self.share = p(inputs, 3 * inputs), p(6, inputs // 2, inputs), p(inputs, 6)
            self.downs, self.ups, self.shares = p(9, middle, middle), p(18, middle // 2, middle), p(9, middle, 2)
        self.w1 = p(inputs, 6 * middle) if bare else p(3, inputs, 2 * middle)
        self.b1 = zeros(6 * middle) if bare else zeros(3, 1, 2 * middle)
        self.gate1 = p(inputs, 14 if bare else 20)
        self.groups, self.group_bias = p(3, middle, 2 * outputs), zeros(3, 1, 2 * outputs)
        self.own, self.own_bias = p(6, middle, outputs), zeros(6, 1, outputs)
        self.gate2 = p(2, 2 * middle, 15 if bare else 18)

    def forward(self, x):
        silu = torch.nn.functional.silu
        d, m, h = self.sizes
        b = x.shape[0]
        if self.bare:
            a = silu(torch.addmm(self.b1, x, self.w1)).view(b, 6, m)
        else:
            low = (x @ self.down).view(b, 6, d // 2).transpose(0, 1)
            share = torch.softmax((x @ self.share).view(b, 3, 2), 2) * 2
            u = (torch.sigmoid(torch.bmm(low, self.up)).view(3, 2, b, d) * share.permute(1, 2, 0).unsqueeze(3)).sum(1) * x
            a = silu(torch.baddbmm(self.b1, u, self.w1)).view(3, b, 2, m).transpose(0, 1).reshape(b, 6, m)
        logits = x @ self.gate1
        g = torch.softmax(logits[:, :6], 1)
        c = torch.softmax(logits[:, 6:14].view(b, 2, 4), 2)
        common, own = c[:, :, :2], c[:, :, 2:]
        if not self.bare:
            s = torch.softmax(logits[:, 14:].view(b, 3, 2), 2)
            g = torch.cat([g[:, :2] + s[:, 0], g[:, 2:]], 1)
            own = own + s[:, 1:]
        all_ = torch.bmm(g.unsqueeze(1), a)
        each = torch.bmm(common, a[:, :2]) + torch.matmul(own.unsqueeze(2), a[:, 2:].view(b, 2, 2, m)).squeeze(2)
        z = torch.cat([all_, each], 1).transpose(0, 1)  # [3, B, m]: shared, categories
        u, mine = z, z[1:].repeat_interleave(3, 0)
        if not self.bare:
            nine = torch.cat([z, mine])
            low = torch.bmm(nine, self.downs).view(9, b, 2, m // 2).transpose(1, 2).reshape(18, b, m // 2)
            share = torch.softmax(torch.bmm(nine, self.shares), 2) * 2
            f = (torch.sigmoid(torch.bmm(low, self.ups)).view(9, 2, b, m) * share.permute(0, 2, 1).unsqueeze(3)).sum(1) * nine
            u, mine = f[:3], f[3:]
        groups = silu(torch.baddbmm(self.group_bias, u, self.groups)).view(3, b, 2, h)
        mine = silu(torch.baddbmm(self.own_bias, mine, self.own)).view(2, 3, b, h)
        logits = torch.bmm(torch.cat([z[1:], z[:1].expand(2, -1, -1)], 2), self.gate2)
        g = torch.softmax(logits[:, :, :15].view(2, b, 3, 5), 3)
        own = g[:, :, :, 4:] if self.bare else g[:, :, :, 4:] + torch.sigmoid(logits[:, :, 15:]).unsqueeze(3)
        seen = torch.cat([groups[:1].expand(2, -1, -1, -1), groups[1:]], 2)  # [2, B, 4, h]
        return torch.matmul(g[:, :, :, :4], seen) + own * mine.transpose(1, 2)


def home(batch, bare=False, copies=1):
    x = torch.randn(batch, 512)
    models = [Home(bare=bare).eval() for _ in range(copies)]
    traced = [torch.jit.freeze(torch.jit.trace(m, x)) for m in models]
    return fastest([lambda: lambda i: models[i % copies](x), lambda: lambda i: traced[i % copies](x)])


def attention_ways(heads):
    """Ways to attend with queries [n, 64] to one history [l, 64] that is keys and values."""
    fused = getattr(torch.nn.functional, "scaled_dot_product_attention", None)

    def split(x):
        return x.view(x.shape[0], heads, -1).transpose(0, 1)

    def join(y):
        return y.transpose(0, 1).reshape(y.shape[1], -1)

    def plain(q, h):
        k = split(h)
        return join(torch.softmax((split(q) * (q.shape[1] // heads) ** -0.5) @ k.transpose(1, 2), -1) @ k)

    def contiguous(q, h):
        k = split(h).contiguous()
        return join(torch.softmax((split(q) * (q.shape[1] // heads) ** -0.5) @ k.transpose(1, 2), -1) @ k)

    def head_by_head(q, h):
        d = q.shape[1] // heads
        parts = []
        for a in range(heads):
            k = h[:, a * d:(a + 1) * d]
            parts.append(torch.softmax((q[:, a * d:(a + 1) * d] * d**-0.5) @ k.t(), -1) @ k)
        return torch.cat(parts, 1) if heads > 1 else parts[0]

    def whole(q, h):
        k = split(h)
        return join(fused(split(q)[None], k[None], k[None])[0])

    return [plain, contiguous, head_by_head] + ([whole] if fused else [])


def target_attention(n, l, heads, copies=1):
    q, hs = torch.randn(n, 64), rotated(lambda: torch.randn(l, 64), copies)
    return fastest([lambda f=f: lambda i: f(q, hs[i % copies]) for f in attention_ways(heads)])


def twin_search(n, l, heads, k, copies=1):
    """The best k of a history [l, 64] for every query [n, 64] and head: products, then a selection."""
    d = 64 // heads
    q, hs = torch.randn(n, 64), rotated(lambda: torch.randn(l, 64), copies)

    def together(i):
        s = q.view(n, heads, d).transpose(0, 1) @ hs[i % copies].view(l, heads, d).permute(1, 2, 0)
        return torch.topk(s, k)

    def head_by_head(i):
        h = hs[i % copies]
        return [torch.topk(q[:, a * d:(a + 1) * d] @ h[:, a * d:(a + 1) * d].t(), k) for a in range(heads)]

    return fastest([lambda: together, lambda: head_by_head])


def target_attention_backward(n, l, heads):
    """The gradients alone, of a graph that is kept."""
    q, h, dy = torch.randn(n, 64, requires_grad=True), torch.randn(l, 64, requires_grad=True), torch.randn(n, 64)

    def way(f):
        def make():
            with torch.enable_grad():
                y = f(q, h)
            return lambda i: torch.autograd.grad(y, [q, h], dy, retain_graph=True)

        return make

    return fastest([way(f) for f in attention_ways(heads)])


def hstu_attention(length, heads, width, causal, bias, train):
    """silu instead of a softmax on dense [L, L] matrices; with bias, position and time terms from tables."""
    q, k, v = (torch.rand(heads, length, width) - 0.5 for _ in range(3))
    dout = torch.randn(heads, length, width)
    position, time = torch.rand(2 * length - 1) / 10, torch.rand(129) / 10
    mask = torch.ones(length, length).tril_() / length if causal else torch.full((length, length), 1 / length)
    times = torch.cumsum(torch.exp(torch.rand(length) * 10).long(), 0)
    asked = torch.cat([times[1:], times[-1:]])
    place = torch.arange(length)[None] - torch.arange(length)[:, None] + length - 1

    def term():
        gap = (asked[:, None] - times[None]).abs_().clamp_(min=1)
        return position[place] + time[(torch.log(gap) / 0.301).long().clamp_(max=128)]

    def eager(i):
        s = q @ k.transpose(1, 2)
        if bias:
            s = s + term()
        return (torch.nn.functional.silu(s) * mask) @ v

    def in_place(i):
        s = q @ k.transpose(1, 2)
        if bias:
            s += term()
        torch.nn.functional.silu(s, inplace=True)
        s *= mask
        return s @ v

    if not train:
        return fastest([lambda: eager, lambda: in_place])
    leaves = [q, k, v] + ([position, time] if bias else [])
    for t in leaves:
        t.requires_grad_()

    def step(i):
        with torch.enable_grad():
            return torch.autograd.grad(eager(i), leaves, dout)

    return step


def best_form(model, *inputs):
    """Eager or traced and frozen, whichever is faster on these inputs."""
    forms = [model]
    try:
        traced = torch.jit.freeze(torch.jit.trace(model.eval(), inputs))
        for _ in range(3):
            traced(*inputs)
        forms.append(traced)
    except Exception:
        pass
    def seconds(f):
        f(*inputs)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            f(*inputs)
            times.append(time.perf_counter() - start)
        return min(times)
    best = min(forms, key=seconds)
    return lambda i: best(*inputs)


class Pepnet(torch.nn.Module):
    """EPNet, then PPNet: gates as in the paper, the first layer of all towers as one, deeper ones as a batch of products."""

    def __init__(self, de, dd, dp, tasks, widths, gate):
        super().__init__()
        linear = torch.nn.Linear
        self.tasks, self.widths = tasks, widths
        self.ep = torch.nn.Sequential(linear(dd + de, gate), torch.nn.ReLU(), linear(gate, de), torch.nn.Sigmoid())
        self.gate_in = linear(dp + de, gate * len(widths))
        self.gate_out = torch.nn.ModuleList([linear(gate, tasks * w) for w in widths])
        self.first = linear(de, tasks * widths[0])
        self.deeper = torch.nn.ParameterList([torch.nn.Parameter(torch.randn(tasks, i, o) / i**0.5) for i, o in zip(widths, widths[1:])])
        self.biases = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(tasks, 1, o)) for o in widths[1:]])
        self.head = torch.nn.Parameter(torch.randn(tasks, widths[-1], 1))

    def forward(self, e, d, p):
        o = 2 * self.ep(torch.cat([d, e.detach()], 1)) * e
        hidden = torch.relu(self.gate_in(torch.cat([p, o.detach()], 1))).chunk(len(self.widths), 1)
        gates = [2 * torch.sigmoid(f(h)) for f, h in zip(self.gate_out, hidden)]
        x = (gates[0] * torch.relu(self.first(o))).view(-1, self.tasks, self.widths[0]).transpose(0, 1)
        for l, (w, b) in enumerate(zip(self.deeper, self.biases)):
            x = torch.relu(torch.baddbmm(b, x, w)) * gates[l + 1].view(-1, self.tasks, self.widths[l + 1]).transpose(0, 1)
        return torch.bmm(x, self.head)


def pepnet(batch, de=1024, dd=64, dp=192, tasks=6, widths=(512, 256, 128), gate=256, train=False):
    model = Pepnet(de, dd, dp, tasks, list(widths), gate)
    inputs = [torch.randn(batch, n, requires_grad=train) for n in (de, dd, dp)]
    if not train:
        return best_form(model, *inputs)

    def step(i):
        with torch.enable_grad():
            model.zero_grad(set_to_none=False)
            model(*inputs).sum().backward()

    return step


class LightSans(torch.nn.Module):
    """Keys and values are projected, then pooled; with places, a second attention between positions."""

    def __init__(self, length, width, heads, interests, places):
        super().__init__()
        nn = torch.nn
        self.heads, self.places = heads, places
        self.qkv, self.dense = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.theta = nn.ParameterList([nn.Parameter(torch.randn(width, interests) / 8) for _ in range(2)])
        self.position, self.norm, self.pq = nn.Parameter(torch.randn(length, width)), nn.LayerNorm(width), nn.Linear(width, 2 * width)

    def split(self, x):
        return x.view(x.shape[0], self.heads, -1).transpose(0, 1)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, 1)
        kt, vt = torch.softmax(k @ self.theta[0], 0).T @ k, torch.softmax(v @ self.theta[1], 0).T @ v
        o = torch.softmax(self.split(q) @ self.split(kt).transpose(1, 2) * (x.shape[1] // self.heads) ** -0.5, -1) @ self.split(vt)
        if self.places:
            a, b = self.pq(self.norm(self.position)).chunk(2, 1)
            o = o + torch.softmax(self.split(a) @ self.split(b).transpose(1, 2) / 8, -1) @ self.split(v)
        return self.dense(o.transpose(0, 1).reshape(x.shape))


def lightsans(length, width, heads, interests, places, train):
    model, x, dy = LightSans(length, width, heads, interests, places), torch.randn(length, width), torch.randn(length, width)
    if not train:
        model.eval()
        traced = torch.jit.freeze(torch.jit.trace(model, x))
        return fastest([lambda: lambda i: model(x), lambda: lambda i: traced(x)])
    x.requires_grad_()

    def step(i):
        with torch.enable_grad():
            model(x).backward(dy)

    return step


def sparse_moe(n, d, h, e, k, train=False):
    """Top-k of e experts of one layer: rows sorted by expert, a product for each expert that has rows, index_add back."""
    x, gate = torch.randn(n, d, requires_grad=train), torch.randn(e, d, requires_grad=train)
    w, b = (torch.randn(e, h, d) / d**0.5).requires_grad_(train), torch.zeros(e, h, requires_grad=train)

    def forward():
        weights, experts = torch.topk(x @ gate.t(), k, 1)
        weights = torch.softmax(weights, 1)
        order = torch.argsort(experts.flatten())
        rows, counts = order // k, torch.bincount(experts.flatten(), minlength=e).tolist()
        y = torch.zeros(n, h)
        parts, at = [], 0
        taken = x[rows]
        for i, c in enumerate(counts):
            if c:
                parts.append(torch.relu(torch.addmm(b[i], taken[at:at + c], w[i].t())))
                at += c
        return y.index_add(0, rows, torch.cat(parts) * weights.flatten()[order, None])

    def step(i):
        if not train:
            return forward()
        with torch.enable_grad():
            for v in (x, gate, w, b):
                v.grad = None
            forward().sum().backward()

    return step


class Pooler(torch.nn.Module):
    def __init__(self, kind, queries, width, heads):
        super().__init__()
        nn = torch.nn
        self.kind, self.heads = kind, heads
        self.query = nn.Parameter(torch.randn(queries, width))
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down, self.last = nn.Linear(width, 4 * width), nn.Linear(4 * width, width), nn.Linear(queries * width, width)
        self.u, self.w = nn.Linear(width, width, False), nn.Linear(width, 1, False)

    def attend(self, q, z):
        b, n, d = z.shape
        k, v = self.kv(z).view(b, n, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        h = q.view(b, -1, self.heads, d // self.heads).transpose(1, 2)
        a = torch.softmax(h @ k.transpose(2, 3) * (d // self.heads) ** -0.5, -1) @ v
        return a.transpose(1, 2).reshape(b, -1, d)

    def forward(self, x):
        b = x.shape[0]
        if self.kind == "additive":
            return torch.softmax(self.w(torch.tanh(self.u(x))), 1).transpose(1, 2) @ x
        z = self.query.expand(b, -1, -1)
        if self.kind in ("pma", "isab"):
            q = self.q(self.query).expand(b, -1, -1)
            h = self.norm1(q + self.attend(q, x))
            y = self.norm2(h + torch.relu(self.out(h)))
            if self.kind == "pma":
                return y
            q = self.q(x)
            h = self.norm1(q + self.attend(q, y))
            return self.norm2(h + torch.relu(self.out(h)))
        if self.kind == "fq_former":
            z = self.norm1(z + self.out(self.attend(self.q(z), torch.cat([z, x], 1))))
            return self.last(z.reshape(b, -1))
        n = self.norm1(torch.cat([x, z], 1))
        a = z + self.out(self.attend(self.q(n[:, x.shape[1]:]), n))
        return self.norm3(a + self.down(torch.nn.functional.gelu(self.up(self.norm2(a)))))


def pooling(kind, batch, length, queries, width, heads):
    model, x = Pooler(kind, queries, width, heads).eval(), torch.randn(batch, length, width)
    traced = torch.jit.freeze(torch.jit.trace(model, x))
    return fastest([lambda: lambda i: model(x), lambda: lambda i: traced(x)])


def adapters(batch, d, o, r, users):
    """Each row through the low-rank adapter of its user: gathered, two batched products."""
    x, y, ids = torch.randn(batch, d), torch.randn(batch, o), torch.randint(users, (batch,))
    down, up = torch.randn(users, r, d), torch.randn(users, r, o)

    def run(i):
        q = torch.bmm(down[ids], x[:, :, None])
        return torch.baddbmm(y[:, None], q.transpose(1, 2), up[ids])

    return run


def fm(batch, fields, k):
    e = torch.randn(batch, fields, k)
    return best_form(Fm(), e)


class Fm(torch.nn.Module):
    def forward(self, e):
        s = e.sum(1)
        return 0.5 * (s * s - (e * e).sum(1)).sum(1)


class Senet(torch.nn.Module):
    def __init__(self, fields, r):
        super().__init__()
        self.w1, self.w2 = torch.nn.Linear(fields, r, bias=False), torch.nn.Linear(r, fields, bias=False)

    def forward(self, e):
        return e * torch.sigmoid(self.w2(torch.relu(self.w1(e.mean(2)))))[:, :, None]


def senet(batch, fields, k, ratio=3):
    return best_form(Senet(fields, fields // ratio), torch.randn(batch, fields, k))


class CrossMixture(torch.nn.Module):
    """All experts of a layer as batched products."""

    def __init__(self, d, experts, r, layers):
        super().__init__()
        p = lambda *s: torch.nn.ParameterList([torch.nn.Parameter(torch.randn(*s) / s[-2]**0.5) for _ in range(layers)])
        self.v, self.c, self.u, self.g = p(d, experts * r), p(experts, r, r), p(experts, r, d), p(d, experts)
        self.b = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(d)) for _ in range(layers)])
        self.experts, self.r = experts, r

    def forward(self, x0):
        x = x0
        for v, c, u, g, b in zip(self.v, self.c, self.u, self.g, self.b):
            a = torch.tanh(x @ v).view(-1, self.experts, self.r).transpose(0, 1)
            w = torch.softmax(x @ g, 1).t()[:, :, None] * torch.tanh(torch.bmm(a, c))
            x = x0 * (torch.bmm(w, u).sum(0) + b) + x
        return x


def cross_mixture(batch, d, experts, r, layers=1):
    return best_form(CrossMixture(d, experts, r, layers), torch.randn(batch, d))


class MiNet(torch.nn.Module):
    """Widths 64 (users 16), hidden 64, rank 10, the concatenations as the authors write them; all users have the same lengths."""

    def __init__(self):
        super().__init__()
        linear = lambda i, o: torch.nn.Linear(i, o, bias=False)
        self.wt, self.vt, self.ws, self.vs = linear(208, 64), linear(64, 1), linear(208, 64), linear(64, 1)
        self.down, self.up = linear(64, 10), linear(10, 64)
        self.gate, self.score, self.bias = linear(208, 192), torch.nn.Parameter(torch.randn(3, 64) / 8), torch.nn.Parameter(torch.zeros(3))

    def items(self, q, u, c, moved, w, v):
        b, n, l = q.shape[0], q.shape[1], c.shape[1]
        wide = lambda x, k: x.expand(b, n, l, k)
        x = torch.cat([wide(c[:, None], 64), wide(q[:, :, None], 64), wide(u[:, None, None], 16), moved[:, None] * q[:, :, None]], -1)
        return torch.softmax(v(torch.relu(w(x)))[..., 0], -1) @ c

    def forward(self, q, u, t, s):
        at = self.items(q, u, t, t, self.wt, self.vt)
        as_ = self.items(q, u, s, self.up(self.down(s)), self.ws, self.vs)
        user = u[:, None].expand(q.shape[0], q.shape[1], 16)
        z = torch.cat([q, user, at, as_], -1)
        g = torch.exp((torch.relu(self.gate(z)).view(q.shape[0], q.shape[1], 3, 64) * self.score).sum(-1) + self.bias)
        return torch.cat([q, user * g[..., :1], at * g[..., 1:2], as_ * g[..., 2:]], -1)


def minet(users, n, lt, ls):
    model = MiNet().eval()
    x = torch.randn(users, n, 64), torch.randn(users, 16), torch.randn(users, lt, 64), torch.randn(users, ls, 64)
    traced = torch.jit.freeze(torch.jit.trace(model, x))
    return fastest([lambda: lambda i: model(*x), lambda: lambda i: traced(*x)])


def minet_train(users, n, lt, ls):
    model, dy = MiNet(), torch.full((users, n, 208), 0.1)
    x = [torch.randn(*s, requires_grad=True) for s in ((users, n, 64), (users, 16), (users, lt, 64), (users, ls, 64))]

    def run(i):
        with torch.enable_grad():
            for v in x:
                v.grad = None
            model.zero_grad(set_to_none=True)
            model(*x).backward(dy)

    return run
