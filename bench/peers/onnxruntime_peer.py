"""ONNX Runtime on one thread: small models made here, weights as initialisers so that the session packs them. Inputs and outputs are
bound once, so that no call copies them."""
import time

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

random = np.random.default_rng(1)
types = {"f32": (np.float32, TensorProto.FLOAT), "f64": (np.float64, TensorProto.DOUBLE)}


def version():
    return ort.__version__


def session(nodes, inputs, outputs, weights=(), type="f32", copies=1):
    """What runs a graph; inputs and outputs are {name: shape}. The inputs have `copies` that take turns."""
    dtype, code = types[type]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(k, code, s) for k, s in inputs.items()],
        [helper.make_tensor_value_info(k, code, s) for k, s in outputs.items()],
        [numpy_helper.from_array(w, k) for k, w in dict(weights).items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    made = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    bindings, keep = [made.io_binding() for _ in range(copies)], []
    for binding in bindings:
        for name, shape in inputs.items():
            x = ort.OrtValue.ortvalue_from_numpy(random.standard_normal(shape).astype(dtype))
            keep.append(x)
            binding.bind_ortvalue_input(name, x)
    for name, shape in outputs.items():
        y = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype))
        keep.append(y)
        for binding in bindings:
            binding.bind_ortvalue_output(name, y)
    run = made.run_with_iobinding
    return lambda i, keep=keep: run(bindings[i % copies])


def identity():
    """The price of a call."""
    return session([helper.make_node("Identity", ["x"], ["y"])], {"x": [1]}, {"y": [1]})


def unary(f, n, type="f32"):
    """Exp, Sigmoid, Tanh, Softplus, Erf, Log ... by ONNX' names."""
    return session([helper.make_node(f, ["x"], ["y"])], {"x": [n]}, {"y": [n]}, type=type)


def softmax(n, rows=1, type="f32"):
    return session([helper.make_node("Softmax", ["x"], ["y"], axis=-1)], {"x": [rows, n]}, {"y": [rows, n]}, type=type)


def matmul(m, n, k, type="f32", bias=False, activation="", copies=1):
    """[m, k] times weights [k, n] that the session packs; with copies, as many sessions take turns."""
    def one():
        dtype = types[type][0]
        weights = {"w": (random.standard_normal((k, n)) / k**0.5).astype(dtype)}
        if bias:
            weights["b"] = random.standard_normal(n).astype(dtype)
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["z"]) if bias else helper.make_node("MatMul", ["x", "w"], ["z"])]
        nodes.append(helper.make_node(activation or "Identity", ["z"], ["y"]))
        if not activation:
            nodes[0].output[0] = "y"
            nodes.pop()
        return session(nodes, {"x": [m, k]}, {"y": [m, n]}, weights, type)

    runs = [one() for _ in range(copies)]
    return lambda i: runs[i % copies](i)


def topk(n, k):
    nodes = [helper.make_node("TopK", ["x", "k"], ["y", "i"])]
    graph_out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [k]), helper.make_tensor_value_info("i", TensorProto.INT64, [k])]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [n])], graph_out,
                              [numpy_helper.from_array(np.array([k], np.int64), "k")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    made = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    xs = [random.standard_normal(n).astype(np.float32) for _ in range(16)]
    return lambda i: made.run(None, {"x": xs[i % 16]})


def ddim(batch, width, hidden, steps):
    """A chain of DDIM steps around an MLP width-hidden-hidden-width with SiLU as one graph, the step's embedding in the first bias."""
    weights = {"w0": random.standard_normal((width, hidden)) / 8, "w1": random.standard_normal((hidden, hidden)) / 16,
               "w2": random.standard_normal((hidden, width)) / 16, "b1": random.standard_normal(hidden),
               "b2": random.standard_normal(width), "a": np.array(0.9), "b": np.array(0.1)}
    nodes, x = [], "x"

    def dense(source, w, b, to):
        nodes.append(helper.make_node("Gemm", [source, w, b], [to]))

    def silu(source, to):
        nodes.append(helper.make_node("Sigmoid", [source], [to + "s"]))
        nodes.append(helper.make_node("Mul", [source, to + "s"], [to]))

    for i in range(steps):
        weights[f"b0_{i}"] = random.standard_normal(hidden)
        dense(x, "w0", f"b0_{i}", f"p{i}")
        silu(f"p{i}", f"h{i}")
        dense(f"h{i}", "w1", "b1", f"q{i}")
        silu(f"q{i}", f"g{i}")
        dense(f"g{i}", "w2", "b2", f"m{i}")
        nodes.append(helper.make_node("Mul", [x, "a"], [f"ax{i}"]))
        nodes.append(helper.make_node("Mul", [f"m{i}", "b"], [f"bm{i}"]))
        x = f"x{i}" if i + 1 < steps else "y"
        nodes.append(helper.make_node("Add", [f"ax{i}", f"bm{i}"], [x]))
    return session(nodes, {"x": [batch, width]}, {"y": [batch, width]}, {k: w.astype(np.float32) for k, w in weights.items()})


def mmoe(batch, inputs, experts, outputs, tasks, copies=1):
    """E relu experts as one product, a softmax gate per task, mixed; with copies, as many sessions take turns."""
    def one():
        scale = inputs**-0.5
        weights = {"w": random.uniform(-scale, scale, (inputs, experts * outputs)).astype(np.float32),
                   "b": random.uniform(-scale, scale, experts * outputs).astype(np.float32),
                   "v": random.uniform(-scale, scale, (inputs, tasks * experts)).astype(np.float32),
                   "sa": np.array([batch, experts, outputs], np.int64), "sg": np.array([batch, tasks, experts], np.int64),
                   "sy": np.array([batch, tasks * outputs], np.int64)}
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["z"]), helper.make_node("Relu", ["z"], ["r"]),
                 helper.make_node("Reshape", ["r", "sa"], ["a"]), helper.make_node("MatMul", ["x", "v"], ["l"]),
                 helper.make_node("Reshape", ["l", "sg"], ["k"]), helper.make_node("Softmax", ["k"], ["g"], axis=-1),
                 helper.make_node("MatMul", ["g", "a"], ["m"]), helper.make_node("Reshape", ["m", "sy"], ["y"])]
        return session(nodes, {"x": [batch, inputs]}, {"y": [batch, tasks * outputs]}, weights)

    runs = [one() for _ in range(copies)]
    return lambda i: runs[i % copies](i)


def pepnet(batch, de=1024, dd=64, dp=192, tasks=6, widths=(512, 256, 128), gate=256, copies=1):
    """EPNet, then PPNet: the first layer of all gates as one product, that of all towers too, deeper ones as a batch of products."""
    node = helper.make_node

    def one():
        weights, nodes = {"two": np.float32(2)}, []

        def weight(name, *shape):
            weights[name] = random.uniform(-(shape[-2] ** -0.5), shape[-2] ** -0.5, shape).astype(np.float32)
            return name

        def gemm(x, name, rows, cols, f, y):
            bias = name + "b"
            weights[bias] = np.zeros(cols, np.float32)
            nodes.extend([node("Gemm", [x, weight(name, rows, cols), bias], [y + "z"]), node(f, [y + "z"], [y])])

        def by_task(x, width, y):
            weights[y + "s"] = np.array([batch, tasks, width], np.int64)
            nodes.extend([node("Reshape", [x, y + "s"], [y + "r"]), node("Transpose", [y + "r"], [y], perm=[1, 0, 2])])

        nodes.append(node("Concat", ["d", "e"], ["de"], axis=1))
        gemm("de", "w1", dd + de, gate, "Relu", "eh")
        gemm("eh", "w2", gate, de, "Sigmoid", "es")
        nodes.extend([node("Mul", ["es", "two"], ["eg"]), node("Mul", ["eg", "e"], ["o"]), node("Concat", ["p", "o"], ["po"], axis=1)])
        gemm("po", "wg", dp + de, gate * len(widths), "Relu", "h")
        nodes.append(node("Split", ["h"], [f"h{l}" for l in range(len(widths))], axis=1))
        for l, width in enumerate(widths):
            gemm(f"h{l}", f"g{l}", gate, tasks * width, "Sigmoid", f"s{l}")
            nodes.append(node("Mul", [f"s{l}", "two"], [f"gate{l}"]))
        gemm("o", "f", de, tasks * widths[0], "Relu", "x")
        nodes.append(node("Mul", ["x", "gate0"], ["gated"]))
        by_task("gated", widths[0], "t0")
        for l in range(1, len(widths)):
            weights[f"c{l}"] = np.zeros((tasks, 1, widths[l]), np.float32)
            by_task(f"gate{l}", widths[l], f"k{l}")
            nodes.extend([node("MatMul", [f"t{l - 1}", weight(f"d{l}", tasks, widths[l - 1], widths[l])], [f"m{l}"]),
                          node("Add", [f"m{l}", f"c{l}"], [f"a{l}"]), node("Relu", [f"a{l}"], [f"r{l}"]),
                          node("Mul", [f"r{l}", f"k{l}"], [f"t{l}"])])
        nodes.append(node("MatMul", [f"t{len(widths) - 1}", weight("head", tasks, widths[-1], 1)], ["y"]))
        return session(nodes, {"e": [batch, de], "d": [batch, dd], "p": [batch, dp]}, {"y": [tasks, batch, 1]}, weights)

    runs = [one() for _ in range(copies)]
    return lambda i: runs[i % copies](i)


def twin_search(n, l, heads, k, copies=1):
    """The best k of a history [l, 64] for every query [n, 64] and head: products, then a selection."""
    d = 64 // heads
    weights = {"qs": np.array([n, heads, d]), "hs": np.array([l, heads, d]), "k": np.array([k])}
    nodes = [helper.make_node("Reshape", ["q", "qs"], ["q3"]), helper.make_node("Transpose", ["q3"], ["qh"], perm=[1, 0, 2]),
             helper.make_node("Reshape", ["h", "hs"], ["h3"]), helper.make_node("Transpose", ["h3"], ["ht"], perm=[1, 2, 0]),
             helper.make_node("MatMul", ["qh", "ht"], ["s"]), helper.make_node("TopK", ["s", "k"], ["y", "i"])]
    return session(nodes, {"q": [n, 64], "h": [l, 64]}, {"y": [heads, n, k]},
                   {name: x.astype(np.int64) for name, x in weights.items()}, copies=copies)


def target_attention(n, l, heads, copies=1):
    """Queries [n, 64] over a history [l, 64] that is keys and values: as matrix products and a softmax, or as its fused operator."""
    d = 64 // heads
    inputs, outputs = {"q": [n, 64], "h": [l, 64]}, {"y": [n, 64]}

    def products():
        weights = {"qs": np.array([n, heads, d]), "ks": np.array([l, heads, d]), "ys": np.array([n, 64]), "c": np.float32(d**-0.5)}
        weights = {k: np.asarray(v, np.float32 if k == "c" else np.int64) for k, v in weights.items()}
        nodes = [helper.make_node("Mul", ["q", "c"], ["qc"]),
                 helper.make_node("Reshape", ["qc", "qs"], ["q3"]), helper.make_node("Transpose", ["q3"], ["qh"], perm=[1, 0, 2]),
                 helper.make_node("Reshape", ["h", "ks"], ["k3"]), helper.make_node("Transpose", ["k3"], ["kt"], perm=[1, 2, 0]),
                 helper.make_node("Transpose", ["k3"], ["vh"], perm=[1, 0, 2]),
                 helper.make_node("MatMul", ["qh", "kt"], ["s"]), helper.make_node("Softmax", ["s"], ["p"], axis=-1),
                 helper.make_node("MatMul", ["p", "vh"], ["o"]), helper.make_node("Transpose", ["o"], ["o3"], perm=[1, 0, 2]),
                 helper.make_node("Reshape", ["o3", "ys"], ["y"])]
        return session(nodes, inputs, outputs, weights, copies=copies)

    def fused():
        weights = {"qs": np.array([1, n, 64]), "ks": np.array([1, l, 64]), "ys": np.array([n, 64])}
        nodes = [helper.make_node("Reshape", ["q", "qs"], ["q3"]), helper.make_node("Reshape", ["h", "ks"], ["k3"]),
                 helper.make_node("MultiHeadAttention", ["q3", "k3", "k3"], ["o"], domain="com.microsoft", num_heads=heads),
                 helper.make_node("Reshape", ["o", "ys"], ["y"])]
        return session(nodes, inputs, outputs, {k: v.astype(np.int64) for k, v in weights.items()}, copies=copies)

    best, chosen = None, None
    for make in [products, fused]:
        try:
            f = make()
            f(0)
        except Exception:
            continue
        seconds = 1e9
        for i in range(6):
            start = time.perf_counter()
            f(i)
            seconds = min(seconds, time.perf_counter() - start)
        if best is None or seconds < best:
            best, chosen = seconds, f
    return chosen
