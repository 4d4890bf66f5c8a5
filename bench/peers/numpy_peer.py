"""numpy on one thread, outputs preallocated where possible."""
import numpy as np

types = {"f32": np.float32, "f64": np.float64}
random = np.random.default_rng(1)


def version():
    return np.__version__


def rotated(copies, *shape, type="f32"):
    return [random.standard_normal(shape).astype(types[type]) for _ in range(copies)]


def unary(f, n, type="f32", copies=1):
    xs, y, g = rotated(copies, n, type=type), np.empty(n, types[type]), getattr(np, f)
    return lambda i: g(xs[i % copies], out=y)


def sort(n, type="f32", copies=100):
    xs = rotated(copies, n, type=type)
    return lambda i: np.sort(xs[i % copies])


def argsort(n, type="f32", copies=100, kind="stable"):
    xs = rotated(copies, n, type=type)
    return lambda i: np.argsort(xs[i % copies], kind=kind)


def argpartition(n, k, type="f32", copies=1):
    """The k largest, sorted: partition, then order what was found."""
    xs = [-x for x in rotated(copies, n, type=type)]

    def run(i):
        x = xs[i % copies]
        best = np.argpartition(x, k - 1)[:k]
        return best[np.argsort(x[best])]

    return run


def normal(n, type="f32"):
    x = np.empty(n, types[type])
    return lambda i: random.standard_normal(n, dtype=types[type], out=x)


def matmul(m, n, k, type="f32", copies=1):
    a, bs, c = rotated(1, m, k, type=type)[0], rotated(copies, k, n, type=type), np.empty((m, n), types[type])
    return lambda i: np.matmul(a, bs[i % copies], out=c)


def einsum(expression, shapes, type="f32"):
    xs = [rotated(1, *shape, type=type)[0] for shape in shapes]
    return lambda i: np.einsum(expression, *xs, optimize=True)


def dpp_fast_greedy(n, d, k, copies=8):
    """Chen et al., NeurIPS 2018, algorithm 1, on V = diag(q) X: kernel rows are made when they are needed."""
    def one():
        x = random.standard_normal((n, d)).astype(np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        return x * np.exp(0.5 * random.standard_normal(n)).astype(np.float32)[:, None]

    vs = [one() for _ in range(copies)]
    c = np.empty((k, n), np.float32)

    def run(i):
        v = vs[i % copies]
        d2 = np.einsum("ij,ij->i", v, v)
        picks = []
        for t in range(k):
            j = int(np.argmax(d2))
            picks.append(j)
            e = v @ v[j]
            if t > 0:
                e -= c[:t, j] @ c[:t]
            e /= np.sqrt(d2[j])
            c[t] = e
            d2 -= e * e
            d2[j] = -np.inf
        return picks

    return run
