from hemstitch.speech import Lexicon, Pronunciation, position_dependent


def test_phones_are_marked_by_their_place_and_silence_is_not():
    lexicon = Lexicon({
        "A": (Pronunciation(("EY",)),),
        "EIGHT": (Pronunciation(("EY", "T"), 0.75), Pronunciation(("EY", "IH", "D", "T"), 0.25)),
        "<hum>": (Pronunciation(("SIL",)),),
    })
    marked = position_dependent(lexicon)
    assert marked.entries["A"] == (Pronunciation(("EY_S",)),)
    assert marked.entries["EIGHT"] == (
        Pronunciation(("EY_B", "T_E"), 0.75), Pronunciation(("EY_B", "IH_I", "D_I", "T_E"), 0.25))
    assert marked.entries["<hum>"] == (Pronunciation(("SIL",)),)
    assert marked.phones[0] == "SIL" and marked.words == lexicon.words
