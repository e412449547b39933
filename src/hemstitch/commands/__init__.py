"""What the subcommands do: they print for people, and call the library."""

from hemstitch.commands._data import check_corpus, import_corpus
from hemstitch.commands._details import Details
from hemstitch.commands._doctor import doctor
from hemstitch.commands._download import download
from hemstitch.commands._experiments import run_cross_validation, run_sweep
from hemstitch.commands._lm import estimate_language_model
from hemstitch.commands._plan import show_plan
from hemstitch.commands._reproduce import list_entries, reproduce, write_combinations, write_markdown
from hemstitch.commands._rescore import rescore
from hemstitch.commands._run import decode, resume, score, train
from hemstitch.commands._show import print_config, show_dry_run, show_lists, show_settings
from hemstitch.commands._speech import align, export_loglikelihoods, export_onnx
from hemstitch.commands._transcribe import Transcriber, Transcript, transcribe

__all__ = [
    "Details",
    "Transcriber",
    "Transcript",
    "align",
    "check_corpus",
    "decode",
    "doctor",
    "download",
    "estimate_language_model",
    "export_loglikelihoods",
    "export_onnx",
    "import_corpus",
    "list_entries",
    "print_config",
    "reproduce",
    "rescore",
    "resume",
    "run_cross_validation",
    "run_sweep",
    "score",
    "show_dry_run",
    "show_lists",
    "show_plan",
    "show_settings",
    "train",
    "transcribe",
    "write_combinations",
    "write_markdown",
]
