"""A tiny speech problem: a corpus of stored features and recipes on it."""

import json

import numpy as np


def write_tiny_corpus(folder, bad_lines=()):
    """Write the corpus of ``tiny_corpus``; ``bad_lines`` are appended to its manifest."""
    words = {"ONE": ("A", "B"), "TWO": ("B", "C"), "TEN": ("C", "A")}
    means = {"SIL": (0, 0, 0), "A": (3, 0, 0), "B": (0, 3, 0), "C": (0, 0, 3)}
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    frames, lines = [], []
    for speaker in range(8):
        for number in range(6):
            spoken = [sorted(words)[i] for i in random.integers(0, 3, random.integers(1, 4))]
            phones = ["SIL", *(p for w in spoken for p in words[w]), "SIL"]
            rows = np.concatenate([np.tile(means[p], (random.integers(8, 13), 1)) for p in phones])
            first = sum(map(len, frames))
            frames.append(rows + random.normal(0, 0.5, rows.shape))
            lines.append(
                {
                    "id": f"s{speaker}-{number}",
                    "speaker": f"s{speaker}",
                    "text": " ".join(spoken),
                    "split": "test" if speaker > 5 else "train",
                    "features": ["features.npy", int(first), int(first + len(rows))],
                }
            )
    np.save(folder / "features.npy", np.concatenate(frames).astype(np.float32))
    text = "".join(json.dumps(line) + "\n" for line in lines) + "".join(f"{line}\n" for line in bad_lines)
    (folder / "utterances.jsonl").write_text(text)
    (folder / "lexicon.txt").write_text("".join(f"{w} {' '.join(p)}\n" for w, p in words.items()))
    (folder / "corpus.json").write_text(json.dumps({"name": "tiny", "frame_shift": 0.01}))
    unigrams = "".join(f"-0.6021 {w}\n" for w in ("</s>", *words)) + "-99 <s>\n"
    (folder / "lm.arpa").write_text(f"\\data\\\nngram 1=5\n\n\\1-grams:\n{unigrams}\n\\end\\\n")


def speech_recipe(path, corpus, extra=""):
    """A recipe file on a tiny corpus."""
    path.write_text(f"""
name = "tiny-speech"
[data]
corpus = "{corpus}"
dev_share = 0.2
[features]
kind = "given"
normalisation = "none"
[hmm]
states_per_phone = 1
silence_states = 1
realign = [1, 2]
[model]
hidden = [16]
left_context = 2
right_context = 2
[update]
kind = "adam"
lr = 0.02
[train]
epochs = 4
batch_size = 64
threads = 1
{extra}
""")
    return path
