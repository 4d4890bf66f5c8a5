"""scipy on one thread."""
import numpy as np
import scipy
import scipy.fft
import scipy.special
import scipy.stats

random = np.random.default_rng(1)
types = {"f32": np.float32, "f64": np.float64}


def version():
    return scipy.__version__


def fft_round_trip(batch, length, channels, type="f32"):
    """rfft and irfft along the middle axis; scipy keeps float32."""
    x = random.standard_normal((batch, length, channels)).astype(types[type])
    return lambda i: scipy.fft.irfft(scipy.fft.rfft(x, axis=1), n=length, axis=1)


def fft_filter(batch, length, channels, type="f32"):
    x = random.standard_normal((batch, length, channels)).astype(types[type])
    bins = (length // 2 + 1, channels)
    w = random.standard_normal(bins) + 1j * random.standard_normal(bins)
    w = w.astype(np.complex64 if type == "f32" else np.complex128)
    return lambda i: scipy.fft.irfft(scipy.fft.rfft(x, axis=1) * w, n=length, axis=1)


def band_mix(batch, length, channels, keep, type="f32"):
    """Low band by transform, zeros, inverse; then low + b (x - low) with one b per channel."""
    x = random.standard_normal((batch, length, channels)).astype(types[type])
    b = random.standard_normal(channels).astype(types[type]) ** 2

    def run(i):
        z = scipy.fft.rfft(x, axis=1)
        z[:, keep:] = 0
        low = scipy.fft.irfft(z, n=length, axis=1)
        return low + b * (x - low)

    return run


def unary(f, n, type="f32", copies=1):
    """A function of scipy.special: expit, erf, log_ndtr ..."""
    xs = [random.uniform(-5, 5, n).astype(types[type]) for _ in range(copies)]
    y, g = np.empty(n, types[type]), getattr(scipy.special, f)
    return lambda i: g(xs[i % copies], out=y)


def rank(n, type="f32", copies=100):
    """Average ranks (midrank)."""
    xs = [random.standard_normal(n).astype(types[type]) for _ in range(copies)]
    return lambda i: scipy.stats.rankdata(xs[i % copies])
