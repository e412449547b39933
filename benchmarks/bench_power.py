"""How surely a comparison of two methods sees a 10 % relative gain on pooled AN4, and how often one that is not there.

Nothing is trained: errors of two methods on 76 speakers and 5,616 words are simulated (``detection_power``), pooled
over 5 folds and compared by the paired bootstrap of ``hemstitch cross-validate``. "Seen" means that the 95 % interval
of the gain leaves 0 out. Target: the 10 % gain is seen in at least 80 % of the comparisons at two seeds.

With ``--decoded RUN`` (a run folder, a decode/PART.jsonl, or several) speakers and their errors are drawn from there;
with two or more runs on the same utterances their agreement is measured and used.
"""

import argparse
import collections
import itertools
import json
import statistics
from dataclasses import asdict
from pathlib import Path

from _common import environment, write_result

from hemstitch.train._experiments import detection_power, measured_agreement, model_words, read_counts, words_like

CORPUS = Path(__file__).parents[1] / "runs" / "corpora" / "an4" / "utterances.jsonl"
GAINS, SEEDS = (0.0, 0.05, 0.1), (1, 2, 3)
MODEL = {"error_rate": 0.15, "speaker_deviation": 0.06, "agreement": 0.7}
VARIANTS = {"agreement": (0.5, 0.8), "error_rate": (0.1, 0.2)}
NETWORK_DEVIATION = 0.03


def words_per_speaker():
    """Of AN4, train and test pooled; 76 times 74 words where the corpus is not there."""
    if not CORPUS.is_file():
        return [74] * 76
    counts = collections.Counter()
    for line in CORPUS.read_text(encoding="utf-8").splitlines():
        utterance = json.loads(line)
        counts[utterance["speaker"]] += len(utterance["text"].split())
    return list(counts.values())


def measure(sample, gain, seeds, trials, network_deviation=NETWORK_DEVIATION):
    found = detection_power(
        sample, gain=gain, seeds=seeds, network_deviation=network_deviation, trials=trials, replications=1000
    )
    shown = {key: round(value, 4) for key, value in asdict(found).items()}
    print(f"  gain {gain:.0%}, {seeds} seed(s): better {found.better:.1%}, worse {found.worse:.1%}", flush=True)
    return {"planted": gain, "seeds": seeds, **shown}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decoded", type=Path, nargs="+", help="run folders, or decode/PART.jsonl files")
    parser.add_argument("--agreement", type=float, default=MODEL["agreement"], help="where it cannot be measured")
    parser.add_argument("--trials", type=int, default=1000)
    arguments = parser.parse_args()
    layout = words_per_speaker()
    result = {"speakers": len(layout), "words": sum(layout), "folds": 5, "network_deviation": NETWORK_DEVIATION}
    print("model:", MODEL)
    sample = model_words(layout, **MODEL)
    main_rows = [measure(sample, gain, seeds, arguments.trials) for gain in GAINS for seeds in SEEDS]
    result["model"] = {**MODEL, "rows": main_rows}
    result["variants"] = []
    for key, values in VARIANTS.items():
        for value in values:
            print(f"model with {key} = {value}:")
            other = model_words(layout, **{**MODEL, key: value})
            rows = [measure(other, gain, 2, arguments.trials) for gain in (0.0, 0.1)]
            result["variants"].append({key: value, "rows": rows})
    for deviation in (0.0, 0.06):
        print(f"model with luck of networks = {deviation}:")
        rows = [measure(sample, gain, 2, arguments.trials, deviation) for gain in (0.0, 0.1)]
        result["variants"].append({"network_deviation": deviation, "rows": rows})
    if arguments.decoded:
        pairs = list(itertools.combinations(arguments.decoded, 2))
        agreement = statistics.mean(measured_agreement(*pair) for pair in pairs) if pairs else arguments.agreement
        print(f"speakers of {arguments.decoded[0]}, agreement {agreement:.3f}:")
        real = words_like(read_counts(arguments.decoded[0]), agreement, len(layout))
        rows = [measure(real, gain, seeds, arguments.trials) for gain in (0.0, 0.1) for seeds in (1, 2)]
        result["decoded"] = {"agreement": round(agreement, 3), "measured": bool(pairs), "rows": rows}
    power = next(r["better"] for r in main_rows if (r["planted"], r["seeds"]) == (0.1, 2))
    alarms = next(r for r in main_rows if (r["planted"], r["seeds"]) == (0.0, 2))
    result |= {"power": power, "target": 0.8, "false_alarms": round(alarms["better"] + alarms["worse"], 4)}
    write_result("power", {**result, **environment()})


if __name__ == "__main__":
    main()
