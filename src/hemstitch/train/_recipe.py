"""A resolved recipe: every section as options, every value with its origin."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hemstitch.errors import ConfigError
from hemstitch.speech import AugmentOptions, FeatureOptions
from hemstitch.train import _options as o
from hemstitch.train._combinations import check_combination
from hemstitch.train._config import Values, build, coerce, nearest, options_of, override, read_overrides, read_recipe

TOP_LEVEL: dict[str, tuple[type, Any, str]] = {
    "name": (str, "run", "names the run folder"),
    "description": (str, "", "one line on what the recipe is for"),
    "seed": (int, 1, "of initialisation, data order and dropout"),
}

SECTIONS: dict[str, type | dict[str, type]] = {
    "data": {"speech": o.SpeechData, "images": o.ImageData, "text": o.TextData},
    "features": FeatureOptions,
    "embedding": o.SpeakerVector,
    "augment": AugmentOptions,
    "hmm": o.Hmm,
    "model": {
        "feed-forward": o.FeedForwardModel,
        "p-norm": o.PNormModel,
        "tdnn": o.TdnnModel,
        "lstm": o.LstmModel,
        "blstm": o.BlstmModel,
        "tdnn-lstm": o.TdnnLstmModel,
        "mlp": o.MlpModel,
        "resnet": o.ResnetModel,
        "vgg": o.VggModel,
        "lstm-lm": o.LstmLanguageModel,
    },
    "start": o.Start,
    "criterion": {"cross-entropy": o.CrossEntropy, "lattice-free-mmi": o.LatticeFreeMmi, "ctc": o.Ctc,
                  "mmi": o.Mmi, "boosted-mmi": o.BoostedMmi, "mpe": o.Mpe, "smbr": o.Smbr},
    "gradient": {"plain": o.PlainGradient, "natural": o.NaturalGradientOptions},
    "update": {"sgd": o.MomentumSgd, "max-change-sgd": o.MaxChangeSgd, "adam": o.Adam, "adamw": o.AdamW,
               "hessian-free": o.HessianFree},
    "backstitch": o.Backstitch,
    "schedule": {
        "constant": o.ConstantRate,
        "exponential": o.ExponentialRate,
        "cosine": o.CosineRate,
        "plateau": o.PlateauRate,
    },
    "order": {"forward": o.ForwardOrder, "backward": o.BackwardOrder, "order-average": o.OrderAverageOptions},
    "average": {"none": o.NoAverage, "ema": o.MovingAverage, "swa": o.WeightAverage},
    "parallel": {
        "local": o.LocalParallel,
        "data-parallel": o.DataParallel,
        "averaging": o.Averaging,
        "virtual-averaging": o.VirtualAveraging,
        "async": o.Replicas,
        "simulated-async": o.SimulatedAsynchronous,
    },
    "train": o.Training,
    "decode": o.Decoding,
}
"""Section -> its options, or its kinds; the first kind is the default."""

DEFAULT_KINDS = {f"{section}.{next(iter(entry))}" for section, entry in SECTIONS.items() if isinstance(entry, dict)} | {
    "model.mlp", "model.lstm-lm"
}
"""What a section is that does not name its kind (images: mlp, text: lstm-lm)."""

SPEECH_ONLY = {"features", "embedding", "augment", "hmm", "decode"}
MODELS = {
    "speech": ("feed-forward", "p-norm", "tdnn", "lstm", "blstm", "tdnn-lstm"),
    "images": ("mlp", "resnet", "vgg"),
    "text": ("lstm-lm",),
}
"""The models that fit each kind of data; the first is the default."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a run is to do, complete.

    Attributes:
        name, description, seed: see ``TOP_LEVEL``.
        sections: section -> options.
        kinds: section -> kind, for sections that have kinds.
        origins: key -> where its value came from.
    """

    name: str
    description: str
    seed: int
    sections: dict[str, Any]
    kinds: dict[str, str]
    origins: dict[str, str]

    def __getattr__(self, section: str) -> Any:
        if section.startswith("__") or section not in self.__dict__.get("sections", {}):
            raise AttributeError(f"this recipe has no section [{section}]")
        return self.sections[section]

    def flat(self) -> dict[str, Any]:
        """``section.field`` -> value, in the order of the sections; JSON-ready."""
        values: dict[str, Any] = {key: getattr(self, key) for key in TOP_LEVEL}
        for section, options in self.sections.items():
            if section in self.kinds:
                values[f"{section}.kind"] = self.kinds[section]
            for field in dataclasses.fields(options):
                value = getattr(options, field.name)
                values[f"{section}.{field.name}"] = str(value) if isinstance(value, Path) else value
        return values

    def with_origins(self) -> dict[str, dict[str, Any]]:
        """``section.field`` -> value and origin: what config.json holds."""
        return {key: {"value": value, "origin": self.origins.get(key, "default")} for key, value in self.flat().items()}


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and the command line's ``--section.field value`` settings on top.

    Raises:
        ConfigError: unreadable file, unknown key (names the nearest), wrong type, value out of range.
    """
    return resolve(override(read_recipe(path, DEFAULT_KINDS), read_overrides(overrides), DEFAULT_KINDS))


def restore_recipe(config: dict[str, dict[str, Any]]) -> Recipe:
    """The recipe that a run folder's config.json holds."""
    return resolve({key: (entry["value"], entry["origin"]) for key, entry in config.items()})


def resolve(values: Values) -> Recipe:
    """Check every key and build every section."""
    grouped: dict[str, Values] = {}
    for key, entry in values.items():
        section, _, field = key.rpartition(".")
        grouped.setdefault(section, {})[field] = entry
    kinds = _kinds(grouped)
    applicable = [s for s in SECTIONS if s not in SPEECH_ONLY or kinds["data"] == "speech"]
    _check_known(values, applicable, kinds)
    top = {
        key: coerce(*grouped.get("", {}).get(key, (default, "default"))[:1], hint, key, _origin_of(values, key))
        for key, (hint, default, _) in TOP_LEVEL.items()
    }
    if not 0 <= top["seed"] < 2**63:
        raise ConfigError(f"seed = {top['seed']} ({_origin_of(values, 'seed')}): expected 0 or above, below 2^63")
    sections = {}
    for section in applicable:
        fields = {k: v for k, v in grouped.get(section, {}).items() if section not in kinds or k != "kind"}
        sections[section] = build(options_class(section, kinds), fields, section)
    recipe = Recipe(**top, sections=sections, kinds=kinds, origins={key: origin for key, (_, origin) in values.items()})
    check_combination(recipe)
    return recipe


def options_class(section: str, kinds: dict[str, str]) -> type:
    """The dataclass of a section, given the chosen kinds."""
    entry = SECTIONS[section]
    return entry[kinds[section]] if isinstance(entry, dict) else entry


def known_keys(sections: Sequence[str], kinds: dict[str, str]) -> list[str]:
    """Every key that applies to a recipe of these kinds."""
    keys = list(TOP_LEVEL)
    for section in sections:
        keys += [f"{section}.kind"] if section in kinds else []
        keys += [f"{section}.{field}" for field in options_of(options_class(section, kinds))]
    return keys


def _origin_of(values: Values, key: str) -> str:
    return values[key][1] if key in values else "default"


def _kinds(grouped: dict[str, Values]) -> dict[str, str]:
    kinds: dict[str, str] = {}
    for section, known in SECTIONS.items():
        if isinstance(known, dict):
            allowed = MODELS[kinds["data"]] if section == "model" else tuple(known)
            kind, origin = grouped.get(section, {}).get("kind", (allowed[0], "default"))
            if kind not in allowed:
                reason = f" for data.kind = {kinds['data']!r}" if kind in known else ""
                raise ConfigError(f"{section}.kind = {kind!r} ({origin}){reason}: {nearest(str(kind), allowed)}")
            kinds[section] = kind
    return kinds


_FOLDERS = ("out", "out_dir", "output", "output_dir", "dir", "folder", "save_dir", "log_dir")
"""What other programs call the option that is --run here."""


def _check_known(values: Values, sections: Sequence[str], kinds: dict[str, str]) -> None:
    known = known_keys(sections, kinds)
    for key, (_, origin) in values.items():
        if key in known:
            continue
        section = key.rpartition(".")[0]
        if section in SECTIONS and section not in sections:
            raise ConfigError(f"{key} ({origin}): section [{section}] does not apply to data.kind = {kinds['data']!r}")
        if key in _FOLDERS and origin == "command line":
            raise ConfigError(f"unknown option --{key}: the folder of a run is given by --run FOLDER")
        where = f" for {section}.kind = {kinds[section]!r}" if section in kinds else ""
        raise ConfigError(f"unknown key {key!r} ({origin}){where}: {nearest(key, known)}")
