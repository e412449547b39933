"""Recipes on the tiny speech corpus."""


def speech_recipe(path, corpus, extra=""):
    """A recipe file on a tiny corpus."""
    path.write_text(f"""
name = "tiny-speech"
[data]
corpus = "{corpus}"
dev_share = 0.2
[features]
kind = "given"
normalisation = "none"
[hmm]
states_per_phone = 1
silence_states = 1
realign = [1, 2]
[model]
hidden = [16]
left_context = 2
right_context = 2
[update]
kind = "adam"
lr = 0.02
[train]
epochs = 4
batch_size = 64
threads = 1
{extra}
""")
    return path
