"""What a newcomer gets wrong on the command line: status 2, no traceback, and an answer that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from hemstitch.cli import main

FILES = {
    "typo.toml": 'extends = "an4"\n[update]\nlrr = 0.1\n',
    "broken.toml": 'name = "x\n',
    "text.toml": 'extends = "demo.toml"\n[train]\nepochs = "many"\n',
    "section.toml": 'extends = "demo"\n[optimizer]\nlr = 1\n',
    "orphan.toml": 'extends = "an5"\n',
    "itself.toml": 'extends = "itself"\n',
    "one.toml": 'extends = "other"\n',
    "other.toml": 'extends = "one"\n',
    "damaged/decode/test.jsonl": "{}\n",
    "here.toml": 'extends = "demo"\n',
    "words.txt": "one two\none three\n",
    "sound.wav": "this is no sound",
    "damaged/config.json": "{",
    "empty/.keep": "",
}

MISTAKES = [
    ("", "usage: hemstitch"),
    ("trian demo", "did you mean 'train'?"),
    ("fly", "known: train, resume"),
    ("train an5", "did you mean 'an4'?"),
    ("train typo.toml", "unknown key 'update.lrr' (typo.toml:3)"),
    ("train broken.toml", "broken.toml: not valid TOML"),
    ("train text.toml", "train.epochs = 'many' (text.toml:3): expected integer, got str"),
    ("train section.toml", "did you mean 'update.lr'?"),
    ("train orphan.toml", "did you mean 'an4'?"),
    ("train itself.toml", "the recipe extends itself"),
    ("train demo --epochs 3", "did you mean 'train.epochs'?"),
    ("train demo --learning_rate 3", "did you mean 'update.lr'?"),
    ("train demo --train.epochs", "--train.epochs VALUE"),
    ("train demo epochs=3", "settings are given as --section.field value"),
    ("train demo --train.epochs 0", "epochs must be at least 1, got 0"),
    ("train demo --train.epochs 2.5", "expected integer, got float"),
    ("train demo --train.clip -1", "clip must not be negative, got -1"),
    ("train demo --train.device gpu", "expected one of 'auto', 'cpu', 'cuda'"),
    ("train demo --update.lr fast", "expected number, got str"),
    ("train demo --update.lr -1", "lr must be above 0, got -1"),
    ("train demo --update.lr nan", "expected a finite number"),
    ("train demo --update.kind adan", "did you mean 'adam'?"),
    ("train demo --update.kind sgd --update.momentum 9", "momentum must lie in [0, 1), got 9"),
    ("train demo --backstitch.interval 0", "interval must be at least 1, got 0"),
    ("train demo --gradient.kind natural --gradient.update_period 0", "update_period must be at least 1"),
    ("train demo --model.hidden 512", "write [512]"),
    ("train demo --model.hidden [0]", "hidden widths must be positive"),
    ("train demo --model.kind transformer", "known: blstm"),
    ("train demo --decode.beam 0", "beam must be above 0, got 0"),
    ("train demo --decode.word_penalty []", "word_penalty needs at least one candidate"),
    ("train demo --hmm.leaves 0", "leaves must be at least 1, got 0"),
    ("train demo --out there", "the folder of a run is given by --run FOLDER"),
    ("train demo --update.lr 1e300", "expected a finite number of at most 3e+38"),
    ("train demo --train.threads 100000", "threads must be at most 1024"),
    ("train demo --parallel.kind virtual-averaging --parallel.workers 10000000", "workers must be at most 10000"),
    ("train demo --parallel.kind simulated-async --parallel.replicas 0", "replicas must be at least 1, got 0"),
    ("train demo --parallel.kind simulated-async --parallel.cluster_seed -1", "cluster_seed must be at least 0"),
    ("train demo --update.kind hessian-free --update.max_cg 0", "max_cg must be at least 1, got 0"),
    ("train demo --seed 99999999999999999999", "expected 0 or above, below 2^63"),
    ("train demo --seed -1", "seed = -1 (command line): expected 0 or above"),
    ("train demo --schedule.kind exponential --schedule.final 2", "final must be in (0, 1], got 2"),
    ("train an4 --data.source nowhere", "there is no nowhere. Give the place of the data: --data.source FOLDER"),
    ("train an4 --data.source empty", "is not AN4 as expected"),
    ("resume nowhere", "nowhere: no such run folder"),
    ("resume empty", "not a run folder"),
    ("decode empty", "not a run folder"),
    ("transcribe empty sound.wav", "not a run folder"),
    ("compare empty empty", "not a run folder"),
    ("sweep demo --over update.lr", "such as update.lr=0.01,0.03,0.1"),
    ("sweep demo --over lr=1,2", "did you mean 'update.lr'?"),
    ("cross-validate demo --seeds one", "one"),
    ("reproduce paper-6", "did you mean 'paper-"),
    ("data kaldi corpus --source empty", "no wav.scp here"),
    ("data klaldi corpus --source empty", "did you mean 'kaldi'?"),
    ("data check empty", "empty"),
    ("-v", "a command comes first"),
    ("--quiet train demo", "a command comes first"),
    ("here.toml", "did you mean `hemstitch train here.toml`?"),
    ("help fly", "no command 'fly'"),
    ("list recipes", "unexpected arguments for list: recipes"),
    ("resume damaged --train.epochs 9", "a run goes on with its own settings"),
    ("resume damaged", "config.json: cannot be read as JSON"),
    ("report damaged", "damaged"),
    ("train here", "did you mean the file here.toml?"),
    ("train empty", "hemstitch train starter --data.corpus empty"),
    ("train --recipe here.toml", "an option that this command does not have"),
    ("train demo --update.lr --train.epochs 3", "--update.lr needs a value"),
    ("train demo --model.hidden [512", "a list ends with ]"),
    ("train demo --device gpu", "choose from"),
    ("train demo --data.corpus here.toml --data.importer an4", "here.toml"),
    ("decode damaged --update.lr 3", "decode takes only --decode.* settings"),
    ("decode damaged --decode.beam", "--decode.beam needs a value"),
    ("score nowhere words.txt", "utterance id, then the words"),
    ("score words.txt", "words.txt"),
    ("score damaged", "test.jsonl: damaged (KeyError"),
    ("train one.toml", "the recipe extends itself by way of others"),
    ("plan demo --parallel.kind simulated-async --workers 0", "expected --workers of 1 and more"),
    ("score words.txt words.txt", "words.txt:2: utterance 'one' appears twice"),
    ("sweep demo", "--over"),
    ("sweep demo --over update.lr=0.1 --seeds 1,1", "give each once"),
    ("sweep demo --over update.lr=0.1 --out damaged", "is a run, not the folder of a sweep"),
    ("cross-validate empty", "hemstitch train starter --data.corpus empty"),
    ("plan demo", "describes no cluster"),
    ("plan demo --workers ten", "numbers such as 1,4,16"),
    ("data kaldi corpus", "--source FOLDER"),
    ("data check here.toml", "no corpus folder here.toml"),
    ("lm nowhere", "no corpus folder nowhere"),
    ("download nothing", "known are cmudict"),
    ("reproduce paper-5/figure-99", "did you mean 'paper-5/figure-9'?"),
    ("reproduce paper-5/figure-4 --scale huge", "choose from"),
    ("transcribe damaged", "required: FILE"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "answer"), MISTAKES, ids=[line or "nothing" for line, _ in MISTAKES])
def test_a_mistake_is_answered(
    line: str, answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    try:
        status = main(line.split())
    except SystemExit as stop:  # argparse
        status = int(stop.code or 0)
    said = "".join(capsys.readouterr())
    assert status == 2
    assert answer in said
