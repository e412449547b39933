"""What was recognised: errors by speaker, the commonest confusions, and utterances with their errors marked."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from hemstitch.report._align import Errors, Pair, sum_errors
from hemstitch.report._html import Html, columns, details, element, join, share_bar, table, tabs
from hemstitch.report._run import Decoded
from hemstitch.report._text import NOTHING, duration, known, number, percent, plural

_OPEN = 12
_FOLDED = 200


def decoded_sections(splits: Mapping[str, Sequence[Decoded]]) -> Html:
    """Everything about the decoded splits, behind a switch where there are several, test first."""
    return tabs("split", {split: _split(splits[split]) for split in sorted(splits, key="test".__ne__)})


def _split(utterances: Sequence[Decoded]) -> Html:
    speakers, confusions = errors_by_speaker(utterances), common_errors(utterances)
    return columns(
        join((element("h3", "Utterances, most errors first"), utterance_list(utterances))),
        join(
            (
                join((element("h3", "Errors by speaker"), speakers)) if speakers else None,
                join((element("h3", "Commonest errors"), confusions)) if confusions else None,
            )
        ),
    )


def utterance_list(utterances: Sequence[Decoded]) -> Html:
    """Utterances by falling number of errors; beyond the first dozen folded away."""
    ranked = sorted(utterances, key=lambda utterance: -utterance.errors.total)
    right = sum(not utterance.errors.total for utterance in ranked)
    shown, folded = ranked[:_OPEN], ranked[_OPEN : _OPEN + _FOLDED]
    legend = element("span", "marked as ", element("del", "spoken"), " ", element("ins", "recognised"), class_="words")
    more = f"{plural(len(folded), 'more utterance')} of {len(ranked):,}"
    return join(
        (
            element("p", f"{right:,} of {plural(len(ranked), 'utterance')} without an error; errors are ", legend, "."),
            *map(_utterance, shown),
            details(more, *map(_utterance, folded)) if folded else None,
        )
    )


def _utterance(utterance: Decoded) -> Html:
    about = [utterance.id, f"speaker {utterance.speaker}" if utterance.speaker else None]
    about.append(duration(utterance.seconds) if known(utterance.seconds) else None)
    about.append(f"{plural(utterance.errors.total, 'error')} in {plural(utterance.errors.words, 'word')}")
    return element(
        "div",
        element("div", marked_words(utterance.pairs), class_="words"),
        element("div", " · ".join(part for part in about if part), class_="about"),
        class_="utterance",
    )


def marked_words(pairs: Iterable[Pair]) -> Html:
    """Aligned words as running text: spoken words that were missed struck out, recognised ones underlined."""
    words = (_marked(reference, hypothesis) for reference, hypothesis in pairs)
    return Html(" ".join(words)) or element("span", "(no words)", class_="quiet")


def _marked(reference: str | None, hypothesis: str | None) -> Html:
    if reference == hypothesis:
        return join((reference,))
    if hypothesis is None:
        return element("del", reference)
    if reference is None:
        return element("ins", hypothesis)
    return element("span", element("del", reference), " ", element("ins", hypothesis))


def errors_by_speaker(utterances: Iterable[Decoded]) -> Html:
    """A table of speakers, most errors a word first; nothing where speakers are not known."""
    by_speaker: dict[str, list[Errors]] = defaultdict(list)
    for utterance in utterances:
        by_speaker[utterance.speaker].append(utterance.errors)
    if set(by_speaker) <= {""}:
        return Html()
    sums = {speaker: sum_errors(errors) for speaker, errors in by_speaker.items()}
    ranked = sorted(sums.items(), key=lambda item: -item[1].rate)
    worst = max((errors.rate for errors in sums.values() if known(errors.rate)), default=0) or 1
    header = ("speaker", "utterances", "words", "ins", "del", "sub", "WER", "")
    rows = [_speaker_row(speaker, len(by_speaker[speaker]), errors, worst) for speaker, errors in ranked]
    first, more = (table(header, part, numeric=range(1, 7)) for part in (rows[:20], rows[20:]))
    return join((first, details(plural(len(rows) - 20, "more speaker"), more) if len(rows) > 20 else None))


def _speaker_row(speaker: str, count: int, errors: Errors, worst: float) -> tuple[object, ...]:
    counts = (errors.words, errors.insertions, errors.deletions, errors.substitutions)
    share = errors.rate / worst if known(errors.rate) else 1.0
    return (speaker or NOTHING, *map(number, (count, *counts)), percent(errors.rate), share_bar(share))


def common_errors(utterances: Iterable[Decoded], limit: int = 15) -> Html:
    """A table of the commonest substitutions, deletions and insertions; nothing where there was no error."""
    counts = Counter(pair for utterance in utterances for pair in utterance.pairs if pair[0] != pair[1])
    rows = [(*(word or NOTHING for word in pair), number(times)) for pair, times in counts.most_common(limit)]
    return table(("spoken", "recognised", "times"), rows, numeric=(2,)) if rows else Html()
