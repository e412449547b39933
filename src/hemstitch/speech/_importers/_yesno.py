"""yesno (OpenSLR resource 1): one speaker says eight words a file, each of them yes or no in Hebrew."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from hemstitch.errors import DataError
from hemstitch.speech._corpus import Corpus, _shuffled
from hemstitch.speech._importers._archive import unpacked
from hemstitch.speech._importers._assemble import Progress, Sound, assemble
from hemstitch.speech._importers._digits import write_uniform_lm
from hemstitch.speech._importers._recording import Recording
from hemstitch.speech._importers._words import Words

PRONUNCIATIONS = {"NO": "L OW", "YES": "K EH N"}
WORDS_PER_FILE = 8
DEV, TEST = 6, 24
"""Files that are held out; the others are "train"."""


def import_yesno(source: Path, target: Path, *, sampling_rate: int = 0, overwrite: bool = False,
                 progress: Progress | None = None) -> Corpus:
    """Make a corpus folder of yesno: 30 files to train on, 6 to choose by, 24 to test on, always the same.

    With one speaker there is no split by speaker; the words are "ken" and "lo", and get these phones. The names of the
    files are their transcripts, and one of the test files, 0_1_0_1_0_0_0_0, has seven words only: whoever recognises
    everything has 1 error in 192 words, 0.52 %.

    Args:
        source: folder with waves_yesno.tar.gz or .tar.xz, or the folder waves_yesno.
        target: the corpus folder; must not exist yet.
        sampling_rate: in Hz; 0: 8000, as it is.
        overwrite: replace what is there.
        progress: called with (utterances done, utterances).

    Raises:
        DataError: ``source`` is not as expected.
    """
    source = Path(source)
    candidates = [source / f"waves_yesno{ending}" for ending in ("", ".tar.gz", ".tar.xz")]
    with (unpacked(candidates if source.name != "waves_yesno" else [source], (".wav",)) as files,
          tempfile.TemporaryDirectory(prefix="hemstitch-") as folder):
        lexicon, lm = Path(folder) / "lexicon.txt", Path(folder) / "lm.arpa"
        lexicon.write_text("".join(f"{word} {phones}\n" for word, phones in PRONUNCIATIONS.items()), encoding="utf-8")
        write_uniform_lm(lm, tuple(PRONUNCIATIONS), WORDS_PER_FILE)
        return assemble(
            Path(target), _recordings(files, source), words=Words(lexicon=str(lexicon), lm=str(lm)),
            sound=Sound(sampling_rate=sampling_rate), overwrite=overwrite, progress=progress,
            about={"name": "yesno", "description": "eight words a file, each yes or no in Hebrew; one speaker",
                   "licence": "made to try the Kaldi scripts out for free; no licence text",
                   "attribution": "yesno, OpenSLR resource 1, anonymous contributor of the Kaldi project"},
        )


def _recordings(files: Mapping[str, Path], source: Path) -> list[Recording]:
    names = sorted(name for name in files if re.fullmatch(r"[01](_[01])*\.wav", name))
    if len(names) <= DEV + TEST:
        raise DataError(f"{source}: {len(names)} files named like 0_1_0_0_1_1_0_1.wav, expected 60")
    held_out = dict(zip(_shuffled(names, 0), [*["test"] * TEST, *["dev"] * DEV]))
    return [
        Recording(id=name.removesuffix(".wav"), speaker="yesno", split=held_out.get(name, "train"), where=name,
                  text=" ".join("YES" if digit == "1" else "NO" for digit in name.removesuffix(".wav").split("_")),
                  audio=files[name])
        for name in names
    ]
