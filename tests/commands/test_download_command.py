import pytest

from hemstitch.cli import main


def test_public_data_are_listed(capsys):
    assert main(["download"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "126.0" in lines["dev-clean-2"] and "sha256" in lines["dev-clean-2"] and "CC BY 4.0" in lines["dev-clean-2"]
    assert "not known: --checksum" in lines["speechocean762"]


@pytest.mark.parametrize(("arguments", "message"), [
    (["dev-clean-3"], "no resource 'dev-clean-3': did you mean 'dev-clean-2'?"),
    (["speechocean762"], "or take what comes with checksum = unverified"),
    (["yesno", "--checksum", "crc:1"], "checksum = 'crc:1': expected sha256:HEX"),
])
def test_nothing_is_fetched_that_cannot_be_verified(capsys, tmp_path, arguments, message):
    assert main(["download", arguments[0], str(tmp_path), *arguments[1:]]) == 2
    assert message in capsys.readouterr().err and not any(tmp_path.iterdir())


def test_a_resource_goes_into_the_folder(capsys, tmp_path, monkeypatch):
    from hemstitch.speech import _download

    resource = _download.Resource(url="https://made.up/source.txt", checksum="", size=5, licence="free", use="read it")
    monkeypatch.setitem(_download.RESOURCES, "made-up", resource)
    monkeypatch.setattr(_download, "_fetch", lambda url, partial, progress: partial.write_text("words"))
    assert main(["download", "made-up", str(tmp_path / "data"), "--checksum", "unverified"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "data" / "source.txt"),
                                                    "licence: free; next: read it"]
