"""The command line: subcommands and their flags; what they do is in ``_actions``."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

import hemstitch
from hemstitch import _actions as do
from hemstitch.errors import HemstitchError

SETTINGS = "Settings of the recipe: --section.field VALUE, as often as needed (train.epochs, update.lr ...)."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit status. A user's mistake is one message and status 2."""
    parser = build_parser()
    given = sys.argv[1:] if arguments is None else list(arguments)
    if not given:
        parser.print_help()
        return 2
    if given[0] == "help":
        given = [*given[1:2], "--help"]
    _check_command(parser, given[0])
    parsed, rest = parser.parse_known_args(given)
    if rest and not getattr(parsed, "takes_settings", False):
        hint = "; a run goes on with its own settings, train another one with these" if given[0] == "resume" else ""
        parsed.parser.error(f"unexpected arguments for {parsed.command}: {' '.join(rest)}{hint}")
    parsed.settings = rest
    try:
        return parsed.function(parsed) or 0
    except HemstitchError as error:
        print(f"hemstitch: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        print(f"hemstitch: there is not enough memory for this: lower train.batch_size, or choose a smaller network "
              f"([model]). ({error})", file=sys.stderr)  # fmt: skip
        return 2
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        return 130


def _is_out_of_memory(error: Exception) -> bool:
    """Whether Python, or torch on a processor or GPU, got no memory."""
    return isinstance(error, MemoryError) or any(s in str(error) for s in ("can't allocate memory", "out of memory"))


def _check_command(parser: argparse.ArgumentParser, given: str) -> None:
    known = parser.get_default("known")
    if given.startswith("-"):
        if given not in ("-h", "--help", "--version"):
            parser.error(f"unknown option {given}: a command comes first, its options after it, as in hemstitch train "
                         "demo --quiet")  # fmt: skip
    elif given.endswith(".toml"):
        parser.error(f"no command {given!r}: did you mean `hemstitch train {given}`?")
    elif given not in known:
        near = difflib.get_close_matches(given, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        parser.error(f"no command {given!r}: {hint}")


def build_parser() -> argparse.ArgumentParser:
    """All subcommands and their flags."""
    parser = argparse.ArgumentParser(
        prog="hemstitch",
        description="Train neural networks, acoustic models first, beyond plain Adam.",
        epilog="Start with: hemstitch train demo",
    )
    parser.add_argument("--version", action="version", version=f"hemstitch {hemstitch.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_runs(commands)
    _add_experiments(commands)
    _add_plan(commands)
    _add_reproduce(commands)
    _add_speech(commands)
    _add_data(commands)
    _add(commands, "list", do.list, "recipes, kinds of parts and importers")
    _add(commands, "doctor", do.doctor, "what this machine has, and what is missing")
    parser.set_defaults(known=tuple(commands.choices))
    return parser


def _add(commands, name, function, text, **defaults):  # type: ignore[no-untyped-def]
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
    command.set_defaults(function=function, parser=command, **defaults)
    return command


def _add_train(commands):  # type: ignore[no-untyped-def]
    command = commands.add_parser(
        "train",
        help="train a recipe",
        add_help=False,
        allow_abbrev=False,
        epilog=SETTINGS,
        description="Train a recipe, test it and write a report.",
    )
    command.add_argument("recipe", nargs="?", help="a TOML file, or the name of a recipe from `hemstitch list`")
    command.add_argument(
        "-h",
        "--help",
        action="store_true",
        dest="wants_help",
        help="this text; after a recipe, also the settings that apply to it",
    )
    command.add_argument("--run", type=Path, metavar="FOLDER", help="the run folder (default: runs/NAME-NUMBER)")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), help="short for --train.device")
    command.add_argument(
        "--print-config", action="store_true", help="show every value and where it comes from; do not train"
    )
    command.add_argument("--dry-run", action="store_true", help="show shapes, parameters, passes, memory; do not train")
    command.add_argument("--quiet", action="store_true", help="say only the result")
    command.set_defaults(function=do.train, takes_settings=True, parser=command)


def _add_runs(commands):  # type: ignore[no-untyped-def]
    command = _add(commands, "resume", do.resume, "continue a run that was stopped or killed, with its own settings")
    command.add_argument("run", type=Path)
    command.add_argument("--quiet", action="store_true", help="say only the result")
    command = _add(
        commands, "decode", do.decode, "recognise a part of the corpus with a trained run", takes_settings=True
    )
    command.add_argument("run", type=Path)
    command.add_argument("--part", default="test", choices=("dev", "test"), help="which part (default: test)")
    _add_details(command)
    command.epilog = "Settings: --decode.beam VALUE and so on."
    command = _add(commands, "score", do.score, "word error rate of a transcript against a reference")
    command.add_argument("reference", type=Path, help="text file: utterance id, then the words; or a run folder")
    command.add_argument("hypothesis", type=Path, nargs="?", help="text file of the same form")
    command = _add(commands, "report", do.report, "write the HTML report of a run")
    command.add_argument("run", type=Path)
    command = _add(commands, "compare", do.compare, "compare runs in one HTML page; seeds of a recipe belong together")
    command.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    command.add_argument(
        "--out", type=Path, default=Path("comparison.html"), help="the page (default: comparison.html)"
    )
    command = _add(commands, "export", do.export, "write metrics, log-likelihoods or the network for another program")
    command.add_argument("run", type=Path)
    command.add_argument("--to", choices=("tensorboard", "csv", "loglikelihoods", "onnx"), default="tensorboard")
    command.add_argument("--out", type=Path, help="target folder or file (default: inside the run folder)")
    command.add_argument("--part", default="test", choices=("train", "dev", "test"), help="of log-likelihoods")
    command.add_argument("--frames", type=int, default=0, help="of ONNX input without context (default: any number)")


def _add_experiments(commands):  # type: ignore[no-untyped-def]
    command = _add(commands, "sweep", do.sweep, "tune a recipe on the dev part, the cost told", takes_settings=True)
    command.add_argument("recipe", help="a TOML file, or the name of a recipe from `hemstitch list`")
    command.add_argument("--over", action="append", required=True, metavar="KEY=VALUE,...",
                         help="values to try, such as update.lr=0.01,0.03,0.1; repeat for other settings")  # fmt: skip
    command.add_argument("--by", choices=("loss", "error", "wer"), default="loss",
                         help="what is compared on dev (default: loss)")  # fmt: skip
    command.add_argument("--no-refine", dest="refine", action="store_false",
                         help="do not step beyond the end of the grid where the best lies there")  # fmt: skip
    command.add_argument("--stop-hopeless", action="store_true", help="stop runs that are far behind the best so far")
    _add_many_runs(command, default_seeds="", which="the recipe's own")
    command = _add(commands, "cross-validate", do.cross_validate,
                   "is one method better than another, by how much, how sure", takes_settings=True)  # fmt: skip
    command.add_argument("methods", nargs="+", metavar="METHOD", help="a recipe, or the folder of a finished sweep")
    command.add_argument("--folds", type=int, default=5, help="how many the speakers are dealt out to (default: 5)")
    command.add_argument("--fold-seed", type=int, default=0, help="deals them out (default: 0)")
    command.add_argument("--no-official", dest="official", action="store_false",
                         help="leave out the runs on the official parts")  # fmt: skip
    _add_many_runs(command, default_seeds="1,2", which="1,2")


def _add_plan(commands):  # type: ignore[no-untyped-def]
    command = _add(commands, "plan", do.plan, "time, staleness and cost of many workers on a described cluster",
                   takes_settings=True)  # fmt: skip
    command.add_argument("recipe", help="a TOML file, or the name of a recipe from `hemstitch list`; its [parallel] "
                         "section, of kind simulated-async or virtual-averaging, describes the cluster")  # fmt: skip
    command.add_argument("--workers", default="", metavar="N,...", help="numbers to compare (default: the recipe's)")
    command.add_argument("--samples", type=float, default=0.0, help="to train on (default: the recipe's data)")
    command.add_argument("--parameters", type=int, default=0, help="of the network (default: the recipe's)")
    command.add_argument("--worker-price", type=float, default=0.0, help="of a worker, per hour")
    command.add_argument("--server-price", type=float, default=0.0, help="of a shard of the server, per hour")


def _add_reproduce(commands):  # type: ignore[no-untyped-def]
    command = _add(commands, "reproduce", do.reproduce, "re-run tables and figures of the papers, values beside ours")
    command.add_argument("entries", nargs="*", metavar="ENTRY", help="such as paper-5/figure-2, paper-5, or all")
    command.add_argument("--list", action="store_true", help="what there is, what it costs, what came out")
    command.add_argument("--scale", choices=("smoke", "laptop", "paper"), default="laptop", help="default: laptop")
    command.add_argument("--out", type=Path, default=Path("runs/reproduce"), metavar="FOLDER",
                         help="where to (default: runs/reproduce); given again, goes on there")  # fmt: skip
    command.add_argument("--keep", type=Path, metavar="FOLDER", help="copy the outcome files to this folder as well")
    command.add_argument("--markdown", nargs=2, type=Path, metavar=("FOLDER", "FILE"),
                         help="write the results page as Markdown from the outcome files in a folder")  # fmt: skip
    command.add_argument("--combinations", type=Path, metavar="FILE",
                         help="try which parts go together; write a Markdown table")  # fmt: skip
    command.add_argument("--quiet", action="store_true", help="say only the results")


def _add_many_runs(command, default_seeds, which):  # type: ignore[no-untyped-def]
    command.add_argument("--seeds", default=default_seeds, metavar="N,N", help=f"seeds of the runs (default: {which})")
    command.add_argument("--out", type=Path, metavar="FOLDER", help="where to; give it again to continue")
    command.add_argument("--quiet", action="store_true", help="say only the result")
    command.epilog = SETTINGS


def _add_speech(commands):  # type: ignore[no-untyped-def]
    command = _add(commands, "align", do.align, "write when which word and phone was said")
    command.add_argument("run", type=Path)
    command.add_argument("--part", default="train", choices=("train", "dev", "test"), help="default: train")
    command.add_argument("--format", choices=("ctm", "textgrid"), default="ctm")
    command.add_argument("--out", type=Path, metavar="FOLDER", help="where to (default: inside the run folder)")
    command = _add(commands, "transcribe", do.transcribe, "recordings to words with a trained run", takes_settings=True)
    command.add_argument("run", type=Path)
    command.add_argument("files", type=Path, nargs="+", metavar="FILE")
    command.add_argument("--format", choices=("text", "json", "ctm", "textgrid"), default="text")
    command.add_argument("--out", type=Path, metavar="PATH", help="a file (a folder for textgrid); default: print")
    command.add_argument("--longest", type=float, default=30.0, metavar="SECONDS",
                         help="longer recordings are searched in pieces, cut where it is quiet")  # fmt: skip
    command.add_argument("--resample", action="store_true", help="convert other sampling rates on the way")
    _add_details(command)
    command.epilog = "Settings: --decode.beam VALUE and so on."
    command = _add(commands, "rescore", do.rescore, "n-best lists of a run judged by a language model of another",
                   takes_settings=True)  # fmt: skip
    command.add_argument("run", type=Path)
    command.add_argument("model", type=Path, help="a run on text, such as of the recipe text-rnnlm")
    command.add_argument("--part", default="test", choices=("dev", "test"), help="which part (default: test)")
    command.add_argument("--best", type=int, default=20, metavar="N", help="sentences in a list (default: 20)")
    command.add_argument("--weights", default="0,0.25,0.5,0.75,1", metavar="W,W",
                         help="shares of the new model in the place of the n-gram; the best on dev is taken "
                              "(default: 0,0.25,0.5,0.75,1)")  # fmt: skip
    command.add_argument("--lattice-beam", type=float, default=8.0, metavar="NATS",
                         help="largest cost of a sentence above the best (default: 8)")  # fmt: skip
    command.epilog = "Settings: --decode.beam VALUE and so on."


def _add_details(command):  # type: ignore[no-untyped-def]
    command.add_argument("--confidences", action="store_true", help="tell how sure each word is")
    command.add_argument("--nbest", type=int, default=0, metavar="N", help="tell the N best word sequences")
    command.add_argument("--lattices", type=Path, metavar="FOLDER", help="write a lattice file (SLF) per utterance")
    command.add_argument("--lattice-beam", type=float, default=8.0, metavar="COST",
                         help="largest cost above the best path in all of these (default: 8)")  # fmt: skip


def _add_data(commands):  # type: ignore[no-untyped-def]
    command = _add(commands, "data", do.data, "make a corpus folder by an importer, or check one", takes_settings=True)
    command.add_argument("importer", help="name of an importer (see `hemstitch list`), or `check`")
    command.add_argument("folder", type=Path, help="the corpus folder")
    command.add_argument("--source", type=Path, help="what the importer reads")
    command.epilog = "Options of the importer: --name VALUE."
    command = _add(commands, "lm", do.lm, "estimate an n-gram language model for a corpus")
    command.add_argument("folder", type=Path, help="the corpus folder; the ARPA file is written into it")
    command.add_argument("--order", type=int, default=3, metavar="N", help="length of the n-grams (default: 3)")
    command.add_argument("--method", choices=("kneser-ney", "witten-bell"), default="kneser-ney",
                         help="smoothing: kneser-ney for running text (default), witten-bell for few data")  # fmt: skip
    command.add_argument("--split", default="train", help="part whose transcripts are counted (default: train)")
    command.add_argument("--text", type=Path, metavar="FILE", help="count these sentences, one a line, instead")
    command.add_argument("--out", metavar="NAME", help="name of the file (default: N-gram.arpa)")
    command = _add(commands, "download", do.download, "fetch public data, verified; without a name, list what there is")
    command.add_argument("name", nargs="?")
    command.add_argument("folder", type=Path, nargs="?", default=Path("data"), help="default: data")
    command.add_argument("--checksum", default="", help="where none is known: sha256:HEX, md5:HEX or unverified")


if __name__ == "__main__":
    sys.exit(main())
