"""What confidences and n-best lists of a trained run are worth: python benchmarks/bench_confidence.py RUN [LATTICE_BEAM]

On dev and test: mean confidence of right and of wrong words, normalised cross entropy (1: certain and right, 0: no better
than the share of right words), the area under the curve of right against wrong words, the word error rate of the best of
50 sentences (chosen knowing the transcript), and the CPU time of search, confidences and 50 sentences over that of audio.
"""

import sys
import time
from pathlib import Path

import kaldialign
import numpy as np
import torch
from _common import environment, write_result

from hemstitch.commands._details import search_options
from hemstitch.commands._speech import load_speech_run
from hemstitch.speech import LatticeDecoder
from hemstitch.train._run_folder import read_json

SURE = 1 - 1e-3


def normalised_cross_entropy(confidence, right):
    """1 - cross-entropy of the confidences over that of the share of right words."""
    share, c = right.mean(), np.clip(confidence, 1 - SURE, SURE)
    entropy = -share * np.log(share) - (1 - share) * np.log(1 - share)
    return 1 + (np.log(c[right]).sum() + np.log(1 - c[~right]).sum()) / len(right) / entropy


def measure(run, decoder, chosen, part):
    """The figures of one part."""
    task = run.task
    scores, offsets = task.scores(run.model, task.parts[part])
    loglikes = scores - chosen["prior_scale"] * task.log_priors()
    decoder(loglikes[: offsets[1]]).alternatives(50)  # compiles
    confidence, right, errors, words, seconds = [], [], 0, 0, 0.0
    for i, utterance in enumerate(task.parts[part].utterances):
        begin = time.process_time()
        found = decoder(loglikes[offsets[i] : offsets[i + 1]])
        alternatives = found.alternatives(50)
        seconds += time.process_time() - begin
        reference = utterance.text.split()
        pairs = kaldialign.align(reference, [w.label for w in found.best.words], "*")
        confidence += found.confidences
        right += [a == b for a, b in pairs if b != "*"]
        errors += min(kaldialign.edit_distance(reference, list(a.words))["total"] for a in alternatives)
        words += len(reference)
    confidence, right = np.array(confidence), np.array(right)
    yes, no = confidence[right, None], confidence[None, ~right]
    return {
        "words_recognised": len(right), "wrong": int((~right).sum()),
        "mean_confidence_right": round(float(yes.mean()), 4), "mean_confidence_wrong": round(float(no.mean()), 4),
        "normalised_cross_entropy": round(float(normalised_cross_entropy(confidence, right)), 4),
        "area_under_curve": round(float((yes > no).mean() + 0.5 * (yes == no).mean()), 4),
        "wer_best_of_50": round(errors / words, 4),
        "real_time_factor": round(seconds / (len(task.parts[part].frames) * task.frame_shift), 5),
    }


def main():
    torch.set_num_threads(1)
    folder, beam = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 8.0
    run, _ = load_speech_run(folder)
    chosen = read_json(folder / "result.json")["decode"]
    options = search_options(run.recipe, chosen["acoustic_scale"], chosen["word_penalty"])
    decoder = LatticeDecoder(run.task.decoding_graph(), options, beam)
    found = {part: measure(run, decoder, chosen, part) for part in ("dev", "test")}
    write_result("confidence", {"what": "confidences and n-best lists", "recipe": run.recipe.name, "seed": run.recipe.seed,
                                "lattice_beam": beam, **found, **environment()})


if __name__ == "__main__":
    main()
