"""Runs of one configuration up to the seed, and names that say in what the configurations differ."""

import os.path
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from hemstitch.report._run import Run
from hemstitch.report._text import NOTHING, literal, shorten

SAME = ("name", "description", "seed")
_MOST_KEYS = 3


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ in nothing but the seed.

    Attributes:
        label: What sets the group apart from the others.
        runs: Its runs, by seed.
        differences: The keys in which the groups differ, with this group's values as text.
    """

    label: str
    runs: tuple[Run, ...]
    differences: Mapping[str, str]


def group_runs(runs: Sequence[Run], ignore: Collection[str] = SAME) -> tuple[Group, ...]:
    """Sort runs into groups of equal configuration, in the order in which the groups first appear.

    Args:
        runs: Any number of runs.
        ignore: Keys that may differ within a group.
    """
    by_settings: dict[tuple, list[Run]] = defaultdict(list)
    for run in runs:
        by_settings[tuple(sorted(_settings(run, ignore).items()))].append(run)
    members = [tuple(sorted(group, key=_by_seed)) for group in by_settings.values()]
    settings = [dict(key) for key in by_settings]
    keys = _differing(settings, runs)
    differences = [{key: values.get(key, NOTHING) for key in keys} for values in settings]
    return tuple(
        Group(label=label, runs=group, differences=difference)
        for label, group, difference in zip(_labels(members, differences), members, differences)
    )


def _settings(run: Run, ignore: Collection[str]) -> dict[str, str]:
    return {key: literal(setting.value) for key, setting in run.config.items() if key not in ignore}


def _by_seed(run: Run) -> tuple[bool, int, str]:
    return (not run.seed.isdecimal(), int(run.seed) if run.seed.isdecimal() else 0, run.seed)


def _differing(settings: Sequence[Mapping[str, str]], runs: Sequence[Run]) -> list[str]:
    """Keys whose values are not the same everywhere, in the order of the configurations."""
    order = dict.fromkeys(key for run in runs for key in run.config)
    return [key for key in order if len({values.get(key) for values in settings}) > 1]


def _labels(members: Sequence[Sequence[Run]], differences: Sequence[Mapping[str, str]]) -> list[str]:
    """The configured names where they tell the groups apart; or the few keys that differ; or letters."""
    names = [_common_name(group) for group in members]
    keys = len(differences[0]) if differences else 0
    if len(members) == 1:
        return [names[0] or "run"]
    if keys <= 1 or (keys <= _MOST_KEYS and not _tell_apart(names)):
        return [", ".join(f"{k} = {shorten(v, 40)}" for k, v in difference.items()) for difference in differences]
    if _tell_apart(names):
        return names
    return [f"{_letters(k)}: {name}" if name else _letters(k) for k, name in enumerate(names)]


def _tell_apart(names: Sequence[str]) -> bool:
    return all(names) and len(set(names)) == len(names)


def _common_name(group: Sequence[Run]) -> str:
    names = {run.name for run in group}
    if len(names) == 1:
        return names.pop()
    return os.path.commonprefix(sorted(names)).rstrip("-_. ")  # noqa: RUF071 (names, not paths)


def _letters(k: int) -> str:
    return (_letters(k // 26 - 1) if k >= 26 else "") + chr(ord("A") + k % 26)
