import numpy as np
import soundfile

from hemstitch.cli import main
from hemstitch.speech import Lexicon


def test_options_of_an_importer_reach_it(capsys, tmp_path):
    (tmp_path / "tree" / "ann").mkdir(parents=True)
    for number in range(3):
        soundfile.write(tmp_path / "tree" / "ann" / f"{number}.wav", np.ones(800) / 4, 8000)
        (tmp_path / "tree" / "ann" / f"{number}.txt").write_text("one, two!")
    (tmp_path / "words").write_text("ONE W AH1 N\nTWO T UW1\n")
    status = main(["data", "wav-tree", str(tmp_path / "corpus"), "--source", str(tmp_path / "tree"), "--lexicon",
                   str(tmp_path / "words"), "--stress", "true", "--case", "upper", "--test-share", "0.34"])
    assert status == 0
    assert capsys.readouterr().out.splitlines() == ["test: 1 utterance, 1 speaker, 2 words",
                                                    "train: 2 utterances, 1 speaker, 4 words"]
    assert Lexicon.read(tmp_path / "corpus" / "lexicon.txt").phones == ("SIL", "AH1", "N", "T", "UW1", "W")
