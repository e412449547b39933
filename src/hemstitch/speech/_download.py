"""Public speech data: where they are, what their bytes must be, and fetching them so that a broken line is no harm.

A file arrives beside its place as ``.NAME.partial`` and is renamed when its checksum is right; a second attempt asks
for the missing bytes only. Where no checksum is known here, one must be given or done without in so many words: a table
that guesses would be worse than none.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from hemstitch.errors import ConfigError, DataError
from hemstitch.speech._files import writing
from hemstitch.speech._manifest import unknown_key

UNVERIFIED = "unverified"
BLOCK = 1 << 20
ATTEMPTS, PAUSE = 4, 1.0
TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as broken."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Resource:
    """A file that anybody may fetch.

    Attributes:
        url: where it is.
        checksum: "sha256:HEX" or "md5:HEX"; "" where it is not known here.
        size: in bytes; 0 where it is not known here.
        licence: as its publisher states it.
        use: what to do with it afterwards.
    """

    url: str
    checksum: str
    size: int
    licence: str
    use: str

    @property
    def file(self) -> str:
        """Its file name."""
        return self.url.rpartition("/")[2]


def _libri(resource: int, name: str, size: int, sha256: str) -> Resource:
    return Resource(url=f"https://www.openslr.org/resources/{resource}/{name}.tar.gz", checksum=f"sha256:{sha256}",
                    size=size, licence="CC BY 4.0", use="unpack with tar; importer librispeech")


RESOURCES: Mapping[str, Resource] = {
    "cmudict": Resource(
        url="https://raw.githubusercontent.com/cmusphinx/cmudict/0f8072f814306c5ee4fbf992ed853601b12c01f9/cmudict.dict",
        checksum="sha256:81917843c7f44ce2b094ac63873c2c7a4cf802040792c455ba3ca406891c3d22", size=3_618_488,
        licence="BSD, two clauses (CMU)", use="setting lexicon of the importers"),
    "yesno": Resource(
        url="https://www.openslr.org/resources/1/waves_yesno.tar.gz",
        checksum="sha256:c3f49e0cca421f96b75b41640749167b52118f232498667ca7a5f9416aef8e73", size=0,
        licence="made to try the Kaldi scripts out for free", use="importer yesno"),
    "speechocean762": Resource(
        url="https://www.openslr.org/resources/101/speechocean762.tar.gz", checksum="", size=0,
        licence="free for commercial and non-commercial use (README)",
        use="unpack with tar; importer kaldi with root and lexicon=resource/lexicon.txt"),
    "musan": Resource(
        url="https://www.openslr.org/resources/17/musan.tar.gz", checksum="md5:0c472d4fc0c5141eca47ad1ffeb2a7df",
        size=0, licence="CC BY 4.0", use="noise for augmentation"),
    "train-clean-5": _libri(31, "train-clean-5", 332_954_390,
                            "47805806c8b15f7549f3c51bd6b7da72ec0128a34d32830c8014a88658c0292d"),
    "dev-clean-2": _libri(31, "dev-clean-2", 126_046_265,
                          "176ec501490eced2d6c1f89f4f0ddc7dfe799e649e5322f8ba49fe3ff50c8012"),
    "dev-clean": _libri(12, "dev-clean", 337_926_286,
                        "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3"),
    "dev-other": _libri(12, "dev-other", 314_305_928,
                        "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365"),
    "test-clean": _libri(12, "test-clean", 346_663_984,
                         "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23"),
    "test-other": _libri(12, "test-other", 328_757_843,
                         "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29"),
    "train-clean-100": _libri(12, "train-clean-100", 6_387_309_499,
                              "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2"),
    "train-clean-360": _libri(12, "train-clean-360", 23_049_477_885,
                              "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf"),
    "train-other-500": _libri(12, "train-other-500", 30_593_501_606,
                              "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2"),
}
"""Name -> what is known of it. train-clean-5 and dev-clean-2 are Mini LibriSpeech."""


def download_resource(name: str, folder: Path | str, *, checksum: str = "", progress: Progress | None = None) -> Path:
    """Fetch a resource by its name.

    Args:
        name: key of ``RESOURCES``.
        folder: where the file goes.
        checksum: "sha256:HEX" or "md5:HEX" where none is known here, or "unverified" to take what comes.
        progress: called with (bytes, all bytes or 0) now and then.

    Raises:
        ConfigError: no such resource, or its checksum is neither known nor given.
        DataError: it cannot be fetched, or its bytes are not those expected.
    """
    if name not in RESOURCES:
        raise ConfigError(f"download: {unknown_key(name, RESOURCES).replace('unknown key', 'no resource', 1)}")
    resource = RESOURCES[name]
    if not (resource.checksum or checksum):
        raise ConfigError(f"the checksum of {resource.url} is not known here: give the one that its publisher states "
                          f"as checksum = sha256:HEX (or md5:HEX), or take what comes with checksum = {UNVERIFIED}")
    return download(resource.url, Path(folder) / resource.file, checksum=checksum or resource.checksum,
                    progress=progress)


def download(url: str, target: Path | str, *, checksum: str, progress: Progress | None = None) -> Path:
    """Fetch a file, or what is missing of it; it is there whole and verified, or not at all.

    A file that is there already is only verified. Without a checksum, what an earlier call left is not continued: the
    file may have changed.

    Args:
        url: http or https.
        target: the file to write.
        checksum: "sha256:HEX", "md5:HEX" or "unverified".
        progress: called with (bytes, all bytes or 0) now and then.

    Raises:
        ConfigError: that is no checksum.
        DataError: it cannot be fetched or written, or its bytes are not those expected (they are then removed).
    """
    target = Path(target)
    algorithm, expected = _parse(checksum)
    if target.exists():
        if expected and (found := _digest(target, algorithm)) != expected:
            raise DataError(f"{target} is there already, with {algorithm} {found} instead of {expected}: move it away")
        return target
    partial = target.with_name(f".{target.name}.partial")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if not expected:
            partial.unlink(missing_ok=True)
        _fetch(url, partial, progress or (lambda done, total: None))
        if expected and (found := _digest(partial, algorithm)) != expected:
            partial.unlink()
            raise DataError(f"{url} came with {algorithm} {found}, expected {expected}: it was damaged on the way or "
                            "has changed at the source. Try again; if it stays so, compare with the publisher's value")
        partial.replace(target)
    return target


def _parse(checksum: str) -> tuple[str, str]:
    """Algorithm and expected value; no value for "unverified"."""
    algorithm, _, value = checksum.lower().partition(":")
    lengths = {"sha256": 64, "md5": 32}
    if checksum == UNVERIFIED:
        return "sha256", ""
    if len(value) != lengths.get(algorithm) or not set(value) <= set("0123456789abcdef"):
        raise ConfigError(f"checksum = {checksum!r}: expected sha256:HEX (64 digits), md5:HEX (32) or {UNVERIFIED}")
    return algorithm, value


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _fetch(url: str, partial: Path, progress: Progress) -> None:
    """Fill ``partial``, going on where it ends; tries again where the line breaks."""
    tag = ""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with _request(url, partial, tag) as response:
                if response is None:
                    return
                tag = response.headers.get("ETag", "")
                if _copy(response, partial, progress):
                    return
                problem = "the connection broke"
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise DataError(f"{url}: the server says {error.code} {error.reason}: look for where the file is "
                                "now") from None
            problem = f"the server says {error.code} {error.reason}"
        except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
            problem = str(getattr(error, "reason", error))
        if attempt < ATTEMPTS:
            time.sleep(PAUSE * 2 ** (attempt - 1))
    raise DataError(f"{url} cannot be fetched: {problem} (tried {ATTEMPTS} times). Look at the network and repeat: "
                    "what has come is kept.")


def _request(url: str, partial: Path, tag: str) -> Any:
    """Ask for what is missing."""
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Range": f"bytes={have}-", **({"If-Range": tag} if tag else {})} if have else {}
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range", "") == f"bytes */{have}":
            return contextlib.nullcontext()  # nothing is missing
        if error.code == 416:  # longer than the file is now: begin anew
            partial.unlink()
            return urllib.request.urlopen(url, timeout=TIMEOUT)
        raise


def _copy(response: Any, partial: Path, progress: Progress) -> bool:
    """Write a response to its place in the file; whether it was complete."""
    with partial.open("ab") as file:
        if response.status != 206:
            file.seek(0)
            file.truncate()
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {file.tell()}-"):
            raise HTTPException(f"asked for bytes from {file.tell()}, got {response.headers.get('Content-Range')}")
        first, length = file.tell(), int(response.headers.get("Content-Length", 0))
        while block := response.read(BLOCK):
            file.write(block)
            progress(file.tell(), first + length if length else 0)
        return not length or file.tell() == first + length
