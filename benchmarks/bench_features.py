"""Feature extraction from audio files against calling kaldi-native-fbank directly on the same files, one core.

Ratios base / ours in seconds: above 1 is faster than the direct call. The base reads each file with soundfile, hands
the samples over in the fastest way the library takes them (an array of floats), and stacks the frames; ours also checks
each file, normalises, and puts all frames into one array. The frames before normalisation must be equal.
"importers" are seconds to make each corpus and to load it.
"""

import array
import functools
import importlib.metadata
import tempfile
import time
from pathlib import Path

import kaldi_native_fbank as knf
import numpy as np
import soundfile
from _common import environment, median_ratio, write_result

from hemstitch.speech import Corpus, FeatureOptions, compute_features, import_corpus

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SOURCES = {"synthetic-digits": None, "fsdd-strings": SHARED / "fsdd", "an4": SHARED / "an4"}
RATE, ROUNDS = 8000, 9


def direct(corpus, kind):
    """What one would write without this package."""
    options = knf.FbankOptions() if kind == "fbank" else knf.MfccOptions()
    options.frame_opts.samp_freq, options.frame_opts.dither, options.mel_opts.num_bins = RATE, 0, 40
    if kind == "mfcc":
        options.use_energy = False
    make = knf.OnlineFbank if kind == "fbank" else knf.OnlineMfcc
    features = []
    for utterance in corpus:
        samples, _ = soundfile.read(corpus.folder / utterance.audio, dtype="float32")
        online = make(options)
        online.accept_waveform(RATE, array.array("f", samples.tobytes()))
        online.input_finished()
        features.append(np.stack([online.get_frame(i) for i in range(online.num_frames_ready)]))
    return features


def timer(function, *arguments):
    """A function that calls it and returns the seconds."""

    def run():
        begin = time.perf_counter()
        function(*arguments)
        return time.perf_counter() - begin

    return run


def make_corpora(folder):
    """Each corpus that can be made here, and the seconds it took."""
    seconds, corpora = {}, {}
    for name, source in SOURCES.items():
        if source is not None and not source.is_dir():
            continue
        taken = timer(functools.partial(import_corpus, name, folder / name, source=source))()
        corpora[name] = Corpus.load(folder / name)
        seconds[name] = {"utterances": len(corpora[name]), "import_seconds": round(taken, 2),
                         "load_seconds": round(timer(Corpus.load, folder / name)(), 3)}
    return corpora, seconds


def main():
    """Every case."""
    with tempfile.TemporaryDirectory() as folder:
        corpora, seconds = make_corpora(Path(folder))
        corpus = corpora["synthetic-digits"].keep([u.id for u in corpora["synthetic-digits"].utterances[:150]])
        cases = {}
        for kind in ("fbank", "mfcc"):
            bare = FeatureOptions(kind=kind, normalisation="none")
            np.testing.assert_array_equal(compute_features(corpus, bare).frames, np.concatenate(direct(corpus, kind)))
            base = timer(direct, corpus, kind)
            cases[f"{kind}, same frames"] = median_ratio(base, timer(compute_features, corpus, bare), ROUNDS)
            cases[f"{kind}, normalised"] = median_ratio(
                base, timer(compute_features, corpus, FeatureOptions(kind=kind)), ROUNDS)
        cases["fbank, normalised, deltas"] = median_ratio(
            timer(direct, corpus, "fbank"), timer(compute_features, corpus, FeatureOptions(deltas=2)), ROUNDS)
    write_result("features", {
        "cases": cases, "importers": seconds, "kaldi_native_fbank": importlib.metadata.version("kaldi_native_fbank"),
        **environment(),
    })


if __name__ == "__main__":
    main()
