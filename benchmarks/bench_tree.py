"""State tying of AN4: seconds from aligned features to trees, and what tied states are worth.

The 844 training utterances (39 values a frame) are aligned by one Gaussian per context-independent state. Then, for
several numbers of leaves: seconds to sum up the statistics and grow the trees, log-likelihood of training and test
frames under one Gaussian per pdf, size of the decoding graph, and word error rate of these Gaussians on the test part
at one acoustic scale (an illustration: no network is involved, nothing is tuned).
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from _common import environment, write_result

from hemstitch.speech import (
    DecodeOptions,
    FeatureOptions,
    Gaussians,
    LanguageModel,
    Lexicon,
    Topology,
    TreeStatistics,
    align,
    compute_features,
    convert_alignment,
    decode,
    decoding_graph,
    equal_alignment,
    import_an4,
    tie_states,
    training_graph,
    word_error_rate,
)

SOURCE = Path(__file__).resolve().parents[1] / "../shared/data/an4"
TARGET_SECONDS = 60.0
FLAT_START_ROUNDS = 8
TIMED = 5


class Data:
    """Features and transcripts of AN4, aligned."""

    def __init__(self, folder):
        self.corpus = import_an4(SOURCE, folder)
        self.features = compute_features(self.corpus, FeatureOptions(kind="given", deltas=2, normalise_variance=True))
        self.lexicon = Lexicon.read(self.corpus.lexicon, self.corpus.silence)
        self.model = LanguageModel.read(self.corpus.language_model())
        self.topology = Topology.left_to_right(self.lexicon.phones)
        self.parts = {part: [u for u in self.corpus if u.split == part] for part in ("train", "test")}
        self.alignments = {"train": self.flat_start()}
        self.alignments["test"] = self.align("test", self.gaussians(self.topology, self.alignments["train"]))

    def of(self, part):
        """The features of each utterance."""
        return [self.features[u.id] for u in self.parts[part]]

    def gaussians(self, topology, alignments):
        """One Gaussian for each pdf, from the training part."""
        pdfs = np.concatenate([alignment.pdfs for alignment in alignments])
        return Gaussians.estimate(np.concatenate(self.of("train")), pdfs, topology.num_pdfs)

    def align(self, part, gaussians):
        return [align(gaussians.loglikelihoods(x), u.text.split(), self.lexicon, self.topology, graph=training_graph(
            u.text.split(), self.lexicon, self.topology)) for u, x in zip(self.parts[part], self.of(part))]

    def flat_start(self):
        alignments = [equal_alignment(u.text.split(), len(x), self.lexicon, self.topology)
                      for u, x in zip(self.parts["train"], self.of("train"))]
        for _ in range(FLAT_START_ROUNDS):
            alignments = self.align("train", self.gaussians(self.topology, alignments))
        return alignments

    def judge(self, topology):
        """Log-likelihood of frames, decoding graph and word error rate with one Gaussian for each pdf."""
        converted = {part: [convert_alignment(a, self.topology, topology) for a in alignments]
                     for part, alignments in self.alignments.items()}
        gaussians = self.gaussians(topology, converted["train"])
        result = {}
        for part, alignments in converted.items():
            scores = [gaussians.loglikelihoods(x)[np.arange(len(x)), a.pdfs] for x, a in zip(self.of(part), alignments)]
            result[f"{part}_loglike_per_frame"] = round(float(np.concatenate(scores).mean(dtype=np.float64)), 4)
        begin = time.perf_counter()
        graph = decoding_graph(self.lexicon, topology, self.model)
        result["graph_seconds"], result["graph"] = round(time.perf_counter() - begin, 3), repr(graph.graph)
        begin = time.perf_counter()
        words = {u.id: decode(gaussians.loglikelihoods(x), graph, DecodeOptions(acoustic_scale=0.1)).text
                 for u, x in zip(self.parts["test"], self.of("test"))}
        audio = sum(map(len, self.of("test"))) * self.features.frame_shift
        result["real_time_factor"] = round((time.perf_counter() - begin) / audio, 5)
        errors = word_error_rate({u.id: u.text for u in self.parts["test"]}, words, replications=1)
        return result | {"test_word_error_rate": round(errors.rate, 4)}


def seconds(work):
    """Median over several calls."""
    times = []
    for _ in range(TIMED):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return round(statistics.median(times), 4)


def main():
    torch.set_num_threads(1)
    if not SOURCE.is_dir():
        sys.exit(f"needs {SOURCE}")
    with tempfile.TemporaryDirectory() as folder:
        data = Data(Path(folder) / "an4")
        counted = TreeStatistics.collect(data.of("train"), data.alignments["train"], data.topology)
        collecting = seconds(lambda: TreeStatistics.collect(data.of("train"), data.alignments["train"], data.topology))
        cases = {"context-independent": {"leaves": data.topology.num_pdfs, **data.judge(data.topology)}}
        for context, num_leaves in (("left", 250), ("both", 250), ("both", 400), ("both", 600)):
            growing = seconds(lambda c=context, n=num_leaves: tie_states(counted, n, context=c))
            tied = tie_states(counted, num_leaves, context=context)
            cases[f"{context} {num_leaves}"] = {
                "leaves": tied.num_pdfs, "growing_seconds": growing, **data.judge(tied),
                "ratio_target": round(TARGET_SECONDS / (collecting + growing), 1)}
    write_result("tree", {
        "what": __doc__.splitlines()[0], "utterances": len(data.parts["train"]),
        "frames": int(counted.sums[:, 0].sum()), "contexts_heard": len(counted.keys), "target_seconds": TARGET_SECONDS,
        "collecting_seconds": collecting, "cases": cases, **environment()})


if __name__ == "__main__":
    main()
