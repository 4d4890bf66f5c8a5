"""Google Benchmark's JSON reports: merges those of several programs, compares those of several runs.

    reports.py merge OUT REPORT...        one report: the context of the first, the programs' names in it, all their benchmarks
    reports.py compare REPORT REPORT...   how far repeated runs of the same thing differ, for every of_* that no run marks noisy
"""
import json
import pathlib
import sys

TOLERANCE = 0.05


def merge(out, paths):
    merged = None
    for path in map(pathlib.Path, paths):
        if not path.exists() or not path.stat().st_size:
            continue
        report = json.loads(path.read_text())
        if merged is None:
            merged = {"context": report["context"], "benchmarks": []}
            del merged["context"]["executable"]
            merged["context"]["executables"] = []
        merged["context"]["executables"].append(path.stem)
        merged["benchmarks"] += report["benchmarks"]
    if merged is None:
        sys.exit("no benchmark has this name")
    pathlib.Path(out).write_text(json.dumps(merged, indent=1) + "\n")


def compare(paths):
    runs = [{b["name"]: b for b in json.loads(pathlib.Path(p).read_text())["benchmarks"]} for p in paths]
    worst, over, noisy, compared = (0.0, ""), [], [], 0
    width = max((len(name) for name in runs[0]), default=10)
    for name, first in runs[0].items():
        cases = [r[name] for r in runs if name in r and "error_occurred" not in r[name]]
        if len(cases) < len(runs):
            print(f"{name:{width}}  is not in every run")
            continue
        if any(c["noisy"] for c in cases):
            noisy.append(name)
            continue
        for key in sorted(k for k in first if k.startswith("of_")):
            values = [c[key] for c in cases]
            difference = max(values) / min(values) - 1
            compared += 1
            worst = max(worst, (difference, f"{key} of {name}"))
            mark = "  <-" if difference > TOLERANCE else ""
            over += [f"{key} of {name}"] if mark else []
            print(f"{name:{width}}  {key:13} {' '.join(f'{v:.3f}' for v in values)}  {100 * difference:5.1f} %{mark}")
    for name in noisy:
        print(f"{name:{width}}  noisy in a run: not compared")
    print(f"{compared} counters of {len(paths)} runs compared, {len(noisy)} cases noisy; largest difference {100 * worst[0]:.1f} % "
          f"({worst[1]}); {len(over)} above {100 * TOLERANCE:.0f} %")


if sys.argv[1] == "merge":
    merge(sys.argv[2], sys.argv[3:])
else:
    compare(sys.argv[2:])
