"""Run folders with made-up, deterministic content, as a training would leave them."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

WORDS = "zero one two three four five six seven eight nine".split()


def _lines(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _metrics(seed: int, lr: float, passes_per_step: int, epochs: int) -> list[dict]:
    records = []
    for step in range(0, epochs * 40 + 1, 2):
        seen = step / 40
        where = dict(
            step=step, epoch=int(seen), samples=step * 256, wall_seconds=step * 0.9 * passes_per_step + seed,
            forward_passes=seen * passes_per_step, backward_passes=seen * passes_per_step, cpu_seconds=step * 1.7,
        )  # fmt: skip
        noise = 0.05 * math.sin(step * (seed + 1))
        loss = 0.4 + 3.5 * math.exp(-lr * seen * 3 * passes_per_step**0.3)
        values = {("train", "loss"): loss + noise, ("train", "learning_rate"): lr * 0.5 ** (step // 100)}
        values["train", "gradient_norm"] = 3 + 20 * abs(noise) * loss
        if step % 40 == 0:
            values |= {("dev", "loss"): loss * 1.1 + noise / 2, ("dev", "frame_error"): 0.1 + 0.2 * loss + noise / 9}
        records += [{**where, "split": split, "name": name, "value": v} for (split, name), v in values.items()]
    return records


def _decoded(seed: int) -> list[dict]:
    utterances = []
    for k in range(40):
        spoken = [WORDS[(k * 7 + i * i) % 10] for i in range(3 + k % 5)]
        heard = list(spoken)
        if k % 3 == 0:
            heard[k % len(heard)] = WORDS[(k + seed) % 10]
        if k % 7 == 0:
            heard.pop()
        if k % 11 == 0:
            heard.insert(1, "nine")
        texts = dict(reference=" ".join(spoken), hypothesis=" ".join(heard))
        utterances.append(dict(id=f"utt-{k:02d}", speaker=f"speaker-{k % 5}", **texts, seconds=1.2 + k / 10))
    return utterances


@pytest.fixture
def make_run(tmp_path):
    """A function that writes a complete run folder and returns its path."""

    def make(
        name: str = "an4", *, seed: int = 0, lr: float = 0.1, passes_per_step: int = 1, epochs=5, **settings
    ) -> Path:
        folder = tmp_path / f"{name}-{lr}-{passes_per_step}-{seed}"
        config = {"name": (name, "recipes/an4.toml:3"), "seed": (seed, "command line")}
        config |= {
            "update.lr": (lr, "recipes/an4.toml:3"),
            "update.momentum": (0.0, "default"),
            "model.sizes": ([512, 512], "recipes/an4.toml:3"),
        }
        config |= {key: (value, "command line") for key, value in settings.items()}
        metrics = _metrics(seed, lr, passes_per_step, epochs)
        _lines(folder / "metrics.jsonl", metrics)
        events = [("info", "learning_rate", "times 0.5"), ("warning", "skipped_utterance", "utt-07: too short")]
        told = [
            dict(wall_seconds=i * 20.0, step=i * 50, level=e[0], kind=e[1], message=e[2]) for i, e in enumerate(events)
        ]
        _lines(folder / "events.jsonl", told)
        _lines(folder / "decode" / "test.jsonl", _decoded(seed))
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "step-00000200.safetensors").write_bytes(b"")
        environment = dict(hemstitch="0.1.0", python="3.11", torch="2.13", platform="Linux", processor="x86")
        environment |= dict(threads=2, device="cpu", started="2025-06-01T12:00:00+00:00")
        wer = dict(words=200, insertions=4, deletions=6, substitutions=10 + seed)
        wer |= dict(rate=(20 + seed) / 200, low=0.07, high=0.14)
        best = min(m["value"] for m in metrics if (m["split"], m["name"]) == ("dev", "loss"))
        summary = dict(parameters=412_345, wall_seconds=181.5, best_dev_loss=best)
        result = dict(status="finished", summary=summary, wer={"test": wer}, accuracy={"dev": 0.89})
        shown = {key: {"value": value, "origin": origin} for key, (value, origin) in config.items()}
        for file, content in (("config", shown), ("environment", environment), ("result", result)):
            (folder / f"{file}.json").write_text(json.dumps(content), encoding="utf-8")
        return folder

    return make


class Page(HTMLParser):
    """A parsed document: complains about unbalanced tags; collects text, attributes and tags."""

    _VOID = frozenset({"meta", "input", "br"})

    def __init__(self, source: str):
        super().__init__(convert_charrefs=True)
        self.source, self.text, self.tags, self.attributes, self._open = source, "", [], [], []
        self.feed(source)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self._VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("style", "svg"):
            self.text += data

    def values(self, name: str) -> list[str]:
        """Values of every attribute of that name."""
        return [value for key, value in self.attributes if key == name]

    def assert_self_contained(self) -> None:
        """Nothing is run and nothing is loaded."""
        assert not {"script", "link", "iframe", "img", "object", "base", "form"} & set(self.tags)
        assert not [key for key, _ in self.attributes if key.startswith("on")]
        links = [v for key in ("href", "src", "xlink:href", "action") for v in self.values(key)]
        assert all(link.startswith("#") for link in links)
        assert all(self.source[m.end() : m.end() + 1] == "#" for m in re.finditer(r"url\(", self.source))
        assert "@import" not in self.source
        ids = self.values("id")
        assert len(ids) == len(set(ids))
        policies = [value for value in self.values("content") if "default-src 'none'" in value]
        assert len(policies) == 1


@pytest.fixture(scope="session")
def parse():
    """A function that parses a document, given as text or as a file."""
    return lambda page: Page(page.read_text(encoding="utf-8") if isinstance(page, Path) else page)
