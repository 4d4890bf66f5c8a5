"""One library's operations, timed slice by slice for a C++ benchmark: python3 server.py LIBRARY, lines in, lines out.

    hello                             -> ok GFLOPS GFLOP/s, VERSION (of its f32 product of 512 x 512 matrices; 0 if it has none)
    {"setup": OP, "args": {...}}      -> ok ID
    run ID CALLS warm|cold            -> SECONDS RUNNING: of CALLS calls by the clock, and what of it the thread was running
                                         (warm: after one more call that is not timed)
    drop ID                           -> ok

OP is a function of LIBRARY_peer.py. It takes the arguments, makes its data, and returns what is timed: a function of the number of
the call (to visit copies of the data in turn).
"""
import gc
import importlib
import json
import os
import sys
import time

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever a library prints must not look like an answer


def answer(text):
    answers.write(" ".join(str(text).split()) + "\n")
    answers.flush()


def speed(module):
    if not hasattr(module, "matmul"):
        return 0
    f = module.matmul(512, 512, 512)
    best = 1e9
    for i in range(20):
        start = time.perf_counter()
        f(i)
        best = min(best, time.perf_counter() - start)
    return 2 * 512**3 / best * 1e-9


def main():
    try:
        module = importlib.import_module(sys.argv[1].removesuffix("_new") + "_peer")
    except Exception as e:
        sys.stdin.readline()
        answer(f"error {e}")
        return
    ready, calls_done = {}, {}
    gc.disable()
    for line in sys.stdin:
        words = line.split()
        try:
            if words[0] == "hello":
                answer(f"ok {speed(module):.0f} GFLOP/s, {sys.argv[1]} {module.version()}, {sys.executable}")
            elif words[0] == "run":
                f, calls = ready[words[1]], int(words[2])
                i = calls_done[words[1]]
                if words[3] == "warm":
                    f(i)
                    i += 1
                running = time.thread_time()
                start = time.perf_counter()
                for i in range(i, i + calls):
                    f(i)
                seconds = time.perf_counter() - start
                running = time.thread_time() - running
                calls_done[words[1]] = i + 1
                answer(f"{seconds!r} {running!r}")
            elif words[0] == "drop":
                ready.pop(words[1], None)
                gc.collect()
                answer("ok")
            else:
                request = json.loads(line)
                name = str(len(calls_done))
                ready[name] = getattr(module, request["setup"])(**request["args"])
                calls_done[name] = 0
                answer(f"ok {name}")
        except Exception as e:
            answer(f"error {type(e).__name__}: {e}")


main()
