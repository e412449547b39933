import hashlib
import http.server
import lzma
import threading

import numpy as np
import pytest

from hemstitch.errors import ConfigError, DataError
from hemstitch.speech import RESOURCES, download, download_resource
from hemstitch.speech import _download as module

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT with ranges; ``cuts`` are the bytes after which a connection breaks, ``asked`` what was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.cuts, self.asked, self.statuses, self.ranges = CONTENT, [], [], [], True
        self.url = f"http://127.0.0.1:{self.server_address[1]}/data.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        if server.statuses:
            return self.send_error(server.statuses.pop(0))
        first = int(wanted[6:-1]) if wanted and server.ranges else 0
        if wanted and server.ranges and first >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if wanted and server.ranges else 200)
        if wanted and server.ranges:
            self.send_header("Content-Range", f"bytes {first}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", str(len(server.content) - first))
        self.end_headers()
        self.wfile.write(server.content[first : server.cuts.pop(0) if server.cuts else None])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_file_comes_whole_and_is_not_fetched_twice(server, tmp_path):
    seen = []
    target = download(server.url, tmp_path / "new" / "data.bin", checksum=SHA256, progress=lambda *d: seen.append(d))
    assert target.read_bytes() == CONTENT and seen[-1] == (len(CONTENT), len(CONTENT))
    assert download(server.url, target, checksum=SHA256) == target and len(server.asked) == 1
    target.write_bytes(b"?")
    with pytest.raises(DataError, match="is there already, with sha256 .* move it away"):
        download(server.url, target, checksum=SHA256)


def test_a_broken_line_costs_only_what_is_missing(server, tmp_path):
    server.cuts = [1_000_000, 2_500_000]
    target = download(server.url, tmp_path / "data.bin", checksum=SHA256)
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000000-", "bytes=2500000-"]
    assert [p.name for p in tmp_path.iterdir()] == ["data.bin"]


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(server, tmp_path):
    server.cuts = [500_000] * module.ATTEMPTS
    with pytest.raises(DataError, match=r"cannot be fetched: .* \(tried 4 times\).*what has come is kept"):
        download(server.url, tmp_path / "data.bin", checksum=SHA256)
    assert download(server.url, tmp_path / "data.bin", checksum=SHA256).read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=500000-"


def test_nothing_is_asked_for_that_is_there(server, tmp_path):
    (tmp_path / ".data.bin.partial").write_bytes(CONTENT)
    assert download(server.url, tmp_path / "data.bin", checksum=SHA256).read_bytes() == CONTENT


@pytest.mark.parametrize(("ranges", "left"), [(False, CONTENT[:1000]), (True, CONTENT + b"longer")])
def test_begins_anew_where_it_cannot_go_on(server, tmp_path, ranges, left):
    server.ranges = ranges
    (tmp_path / ".data.bin.partial").write_bytes(left)
    assert download(server.url, tmp_path / "data.bin", checksum=SHA256).read_bytes() == CONTENT


def test_other_bytes_than_expected_are_refused_and_removed(server, tmp_path):
    (tmp_path / ".data.bin.partial").write_bytes(b"foreign")
    with pytest.raises(DataError, match="came with sha256 .*, expected .*: it was damaged"):
        download(server.url, tmp_path / "data.bin", checksum=SHA256)
    assert not any(tmp_path.iterdir())
    assert download(server.url, tmp_path / "data.bin", checksum=SHA256).read_bytes() == CONTENT


def test_without_a_checksum_nothing_old_is_continued(server, tmp_path):
    (tmp_path / ".data.bin.partial").write_bytes(b"foreign")
    assert download(server.url, tmp_path / "data.bin", checksum="unverified").read_bytes() == CONTENT
    assert server.asked == [None]


def test_servers_that_cannot_or_will_not(server, tmp_path):
    server.statuses = [503, 503]
    assert download(server.url, tmp_path / "data.bin", checksum=SHA256).read_bytes() == CONTENT
    server.statuses = [404]
    with pytest.raises(DataError, match="the server says 404 Not Found: look for where the file is now"):
        download(server.url, tmp_path / "other.bin", checksum=SHA256)
    with pytest.raises(DataError, match=r"cannot be fetched: .*refused.*\(tried 4 times\)"):
        download("http://127.0.0.1:1/x", tmp_path / "other.bin", checksum=SHA256)


@pytest.mark.parametrize("checksum", ["", "sha256:12", "crc:00", "md5:" + "g" * 32, "whatever"])
def test_what_is_no_checksum(tmp_path, checksum):
    with pytest.raises(ConfigError, match="expected sha256:HEX"):
        download("http://127.0.0.1:1/x", tmp_path / "x", checksum=checksum)


def test_resources_by_name(server, tmp_path, monkeypatch):
    resource = module.Resource(url=server.url, checksum="", size=0, licence="", use="")
    monkeypatch.setattr(module, "RESOURCES", {"made-up": resource})
    with pytest.raises(ConfigError, match=r"is not known here: give the one .*checksum = unverified"):
        download_resource("made-up", tmp_path)
    assert download_resource("made-up", tmp_path, checksum=SHA256).read_bytes() == CONTENT
    with pytest.raises(ConfigError, match=r"no resource 'made_up': did you mean 'made-up'\?"):
        download_resource("made_up", tmp_path)


def test_the_table_is_well_formed(shared_data):
    for resource in RESOURCES.values():
        assert resource.url.startswith("https://") and resource.licence and resource.use
        assert not resource.checksum or module._parse(resource.checksum)[1]
    dictionary = lzma.open(shared_data / "cmudict" / "cmudict.dict.xz").read()
    assert RESOURCES["cmudict"].checksum == f"sha256:{hashlib.sha256(dictionary).hexdigest()}"
    assert RESOURCES["cmudict"].size == len(dictionary)
