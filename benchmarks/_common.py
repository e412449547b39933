"""What the benchmarks share: interleaved timing, and result files with machine and versions."""

import json
import platform
import statistics
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def median_ratio(base, ours, rounds):
    """Call the two timers in turn (A B A B ...); the ratio base / ours of each pair, its median and range."""
    base(), ours()                                              # warm up
    pairs = [(base(), ours()) for _ in range(rounds)]
    ratios = sorted(a / b for a, b in pairs)
    return {
        "ratio": round(statistics.median(ratios), 4), "lowest": round(ratios[0], 4), "highest": round(ratios[-1], 4),
        "base_seconds": round(statistics.median(a for a, _ in pairs), 5),
        "our_seconds": round(statistics.median(b for _, b in pairs), 5), "rounds": rounds,
    }


def environment():
    """Machine and versions."""
    processor = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    return {"torch": torch.__version__, "python": platform.python_version(), "threads": torch.get_num_threads(),
            "processor": processor, "cores": len(names) if cpuinfo.exists() else None}


def write_result(name, result):
    """Print a result and write it to results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
