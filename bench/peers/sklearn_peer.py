"""scikit-learn on one thread."""
import numpy as np
import sklearn
import sklearn.metrics

random = np.random.default_rng(1)
types = {"f32": np.float32, "f64": np.float64}


def version():
    return sklearn.__version__


def roc_auc(n, type="f32", copies=32):
    """A tenth positives, shifted by 0.8 deviations."""
    ys = [random.random(n) < 0.1 for _ in range(copies)]
    xs = [(random.standard_normal(n) + 0.8 * y).astype(types[type]) for y in ys]
    ys = [y.astype(np.uint8) for y in ys]
    return lambda i: sklearn.metrics.roc_auc_score(ys[i % copies], xs[i % copies])
