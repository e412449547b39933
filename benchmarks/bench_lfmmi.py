"""LF-MMI's denominator against what one would write instead: 32 sequences of 150 frames, float32, forward + backward.

    python benchmarks/bench_lfmmi.py [rounds]
    python benchmarks/bench_lfmmi.py --two-threads [rounds]     only that; replaces it in the results

Graph (a) has 100 states, 954 arcs and 60 pdfs, (b) 3,000, 49,744 and 2,000; each state is entered by one pdf and
looped by another, as in the chain topology. Opponents, one thread each: a loop over frames of sparse-CSR products, one
of dense products (a only), and a kernel written in C (lfmmi_kernel.c; where there is a compiler). Ratios are opponent /
ours, in CPU time, so that other processes disturb little. Two threads against one are in wall time, and mean something
only on a quiet machine; what they can reach, the CPU time of the batch over that of half of it, is told beside it. Memory is the peak less the resident size before, in a process of its own, with occupancies.

Limits: CSR 2.5 (stretch 5) on (a) and 1 (stretch 1.5) on (b); two threads 1.4; 0.8 GB on (b).
"""

import ctypes
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from _common import RESULTS, environment, median_ratio, write_result

from hemstitch.criteria import LatticeFreeMMI
from hemstitch.graphs import (
    Graph,
    compose,
    denominator_posteriors,
    initial_probabilities,
    normalisation_graph,
    numerator_posteriors,
)

SIZES = {"a": (100, 954, 60), "b": (3000, 49_744, 2000)}
BATCH, FRAMES, LEAK = 32, 150, 1e-5
LENGTHS = torch.full((BATCH,), FRAMES)


def chain_graph(num_states, num_arcs, num_pdfs):
    """Self-loops of weight 0.5, and random arcs into states that share 0.5."""
    draw = np.random.default_rng(0)
    states, others = np.arange(num_states), num_arcs - num_states
    entered, looped = draw.integers(0, num_pdfs, (2, num_states))
    src, dst = draw.integers(0, num_states, (2, others))
    weight = draw.random(others) + 0.1
    weight *= 0.5 / np.bincount(src, weight, num_states)[src]
    return Graph.from_arcs(
        np.concatenate([states, src]), np.concatenate([states, dst]), np.concatenate([looped, entered[dst]]),
        -np.log(np.concatenate([np.full(num_states, 0.5), weight])),
    )


def matrix_loop(graph, dense):
    """Forward-backward as a loop over frames of matrix products, probabilities scaled by frame."""
    pairs, pair = torch.stack([graph.dst, graph.pdf], 1).unique(dim=0, return_inverse=True)
    shape = (len(pairs), graph.num_states)
    weight = (-graph.cost).exp().float()
    to_pair = torch.sparse_coo_tensor(torch.stack([pair, graph.src]), weight, shape).coalesce()
    to_dst = torch.sparse_coo_tensor(torch.stack([pairs[:, 0], torch.arange(len(pairs))]), torch.ones(len(pairs)),
                                     shape[::-1]).coalesce()
    to_src = to_pair.t().coalesce()
    convert = torch.Tensor.to_dense if dense else torch.Tensor.to_sparse_csr
    to_pair, to_dst, to_src = (convert(x) for x in (to_pair, to_dst, to_src))
    dst, pdf = pairs.T
    initial = initial_probabilities(graph).float()[:, None]

    def run(outputs):
        highest = outputs.amax(2, keepdim=True)
        x = (outputs - highest).exp().permute(1, 2, 0).contiguous()
        now, alphas, totals = initial.expand(-1, BATCH).contiguous(), [], []
        for t in range(FRAMES):
            totals.append(now.sum(0))
            alphas.append(now + LEAK * totals[t] * initial)
            now = to_dst @ ((to_pair @ alphas[t]) * x[t][pdf]) / totals[t]
        end = now.sum(0) * (1 + LEAK)
        logprob = end.double().log() + torch.stack(totals).double().log().sum(0) + highest[..., 0].double().sum(1)
        beta, shares = (torch.ones_like(now) / end), torch.zeros_like(x)
        for t in reversed(range(FRAMES)):
            beta = beta + LEAK * (initial * beta).sum(0)
            passed_on = beta[dst] * x[t][pdf] / totals[t]
            shares[t].index_add_(0, pdf, (to_pair @ alphas[t]) * passed_on)
            beta = to_src @ passed_on
        return logprob, shares.permute(2, 0, 1).contiguous()

    return run


def c_kernel(graph, folder):
    """lfmmi_kernel.c, compiled for this machine; ``None`` where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = Path(folder) / "lfmmi_kernel.so"
    flags = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC", "-lm"]
    subprocess.run([compiler, Path(__file__).with_name("lfmmi_kernel.c"), "-o", library, *flags], check=True)
    function = ctypes.CDLL(str(library)).denominator
    from hemstitch.graphs._denominator import PairedArcs

    arcs = PairedArcs.of(graph).astype(np.float32)
    order = ("initial", "src", "weight", "pair_first", "pair_dst", "pair_pdf", "pair_initial", "dst_first", "out_first",
             "out_pair", "out_weight")

    def run(outputs):
        logprob, shares = torch.empty(BATCH, dtype=torch.float64), torch.empty_like(outputs)
        function(graph.num_states, len(arcs.pair_dst), outputs.shape[2], FRAMES, BATCH, ctypes.c_float(LEAK),
                 *(ctypes.c_void_p(getattr(arcs, name).ctypes.data) for name in order),
                 *(ctypes.c_void_p(x.data_ptr()) for x in (outputs, logprob, shares)))
        return logprob, shares

    return run


def timer(function, clock=time.process_time):
    def run():
        start = clock()
        function()
        return clock() - start

    return run


def compare(size, rounds, folder):
    """Ratios opponent / ours for one graph, after a check that all give the same."""
    graph, outputs, ours = problem(size)
    opponents = {"csr_loop": matrix_loop(graph, dense=False), "c_kernel": c_kernel(graph, folder)}
    if size == "a":
        opponents["dense_loop"] = matrix_loop(graph, dense=True)
    found, result = ours(), {}
    for name, run in opponents.items():
        if run is None:
            continue
        logprob, shares = run(outputs)
        torch.testing.assert_close(found.logprob, logprob, atol=1e-4, rtol=0)
        torch.testing.assert_close(found.occupancies, shares, atol=1e-5, rtol=0)
        result[name] = median_ratio(timer(lambda run=run: run(outputs)), timer(ours), rounds)
    return result | threads(ours, rounds) | whole_objective(graph, outputs, rounds)


def two_threads(ours, rounds):
    """Wall time of one thread / two threads, which must agree to the bit."""
    results = {}

    def on(count):
        def run():
            torch.set_num_threads(count)
            results[count] = ours()
            torch.set_num_threads(1)

        return timer(run, time.perf_counter)

    ratio = median_ratio(on(1), on(2), rounds)
    assert torch.equal(results[1].occupancies, results[2].occupancies)
    assert torch.equal(results[1].logprob, results[2].logprob)
    return ratio


def problem(size):
    """Graph, outputs, and what computes its denominator of the first so many sequences."""
    graph = chain_graph(*SIZES[size])
    torch.manual_seed(0)
    outputs = torch.randn(BATCH, FRAMES, SIZES[size][2])
    return graph, outputs, lambda n=BATCH: denominator_posteriors(graph, outputs[:n], LENGTHS[:n], LEAK)


def threads(ours, rounds):
    """Two threads against one, and what they can reach: the CPU time of the batch over that of half of it."""
    half = median_ratio(timer(ours), timer(lambda: ours(BATCH // 2)), rounds)
    return {"whole_over_half_batch": half, "two_threads": two_threads(ours, rounds)}


def only_threads(rounds):
    """The earlier result with this part measured anew."""
    result = json.loads((RESULTS / "lfmmi.json").read_text())
    for size in SIZES:
        result[size] |= threads(problem(size)[2], rounds if size == "b" else 20 * rounds)
    return result


def whole_objective(graph, outputs, rounds):
    """The numerators, and the whole criterion with its backward pass, against the denominator alone."""
    norm, draw = normalisation_graph(graph), np.random.default_rng(1)
    numerators = [compose(walk(graph, draw), norm) for _ in range(BATCH)]
    criterion, given = LatticeFreeMMI(graph, leak=LEAK), outputs.clone().requires_grad_()

    def step():
        given.grad = None
        criterion(given, LENGTHS, numerators).loss.backward()

    denominator = timer(lambda: denominator_posteriors(graph, outputs, LENGTHS, LEAK))
    parts = {"numerators": timer(lambda: numerator_posteriors(numerators, outputs, LENGTHS)), "objective": timer(step)}
    return {f"{name}_over_denominator": median_ratio(run, denominator, rounds) for name, run in parts.items()}


def walk(graph, draw):
    """The pdf sequence of a random path, as a graph."""
    offsets, state, pdfs = graph.arc_offsets().tolist(), graph.start, []
    for _ in range(FRAMES):
        arc = draw.integers(offsets[state], offsets[state + 1])
        pdfs.append(int(graph.pdf[arc]))
        state = int(graph.dst[arc])
    return Graph.from_arcs(range(FRAMES), range(1, FRAMES + 1), pdfs, [0.0] * FRAMES,
                           final=[torch.inf] * FRAMES + [0.0])


def peak_growth(size):
    """Megabytes, in this process: run it in one of its own."""
    graph = chain_graph(*SIZES[size])
    denominator_posteriors(graph, torch.zeros(BATCH, 2, SIZES[size][2]), LENGTHS.clamp(max=2), LEAK)  # compiled
    outputs = torch.randn(BATCH, FRAMES, SIZES[size][2])
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    found = denominator_posteriors(graph, outputs, LENGTHS, LEAK)
    assert found.occupancies is not None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - pages * resource.getpagesize() / 2**20


def main():
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Sparse")
    if sys.argv[1:2] == ["--peak"]:
        print(json.dumps(peak_growth(sys.argv[2])))
        return
    if sys.argv[1:2] == ["--two-threads"]:
        write_result("lfmmi", only_threads(int(sys.argv[2]) if sys.argv[2:] else 9))
        return
    rounds = int(sys.argv[1]) if sys.argv[1:] else 9
    result = environment()
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            child = subprocess.run([sys.executable, __file__, "--peak", size], check=True, stdout=subprocess.PIPE)
            result[size] = compare(size, rounds, folder) | {"peak_megabytes": round(json.loads(child.stdout), 1)}
    write_result("lfmmi", result)


if __name__ == "__main__":
    main()
