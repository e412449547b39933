"""What each subcommand does with its arguments; what it needs is imported only then, so that help answers at once."""

from __future__ import annotations

import argparse

from hemstitch.errors import ConfigError


def train(arguments: argparse.Namespace) -> int:
    from hemstitch import commands

    if arguments.recipe is None:
        arguments.parser.print_help()
        return 0 if arguments.wants_help else 2
    settings = [*arguments.settings, *(["--train.device", arguments.device] if arguments.device else [])]
    if arguments.wants_help:
        arguments.parser.print_help()
        return commands.show_settings(arguments.recipe, settings)
    if arguments.print_config:
        return commands.print_config(arguments.recipe, settings)
    if arguments.dry_run:
        return commands.show_dry_run(arguments.recipe, settings)
    return commands.train(arguments.recipe, settings, arguments.run, arguments.quiet)


def resume(arguments: argparse.Namespace) -> int:
    from hemstitch import commands

    return commands.resume(arguments.run, arguments.quiet)


def decode(arguments: argparse.Namespace) -> int:
    from hemstitch import commands

    return commands.decode(arguments.run, arguments.part, arguments.settings, commands.Details.of(arguments))


def score(arguments: argparse.Namespace) -> int:
    from hemstitch import commands

    return commands.score(arguments.reference, arguments.hypothesis)


def report(arguments: argparse.Namespace) -> int:
    from hemstitch.report import write_report

    print(write_report(arguments.run))
    return 0


def compare(arguments: argparse.Namespace) -> int:
    from hemstitch.report import write_comparison

    print(write_comparison(arguments.runs, arguments.out))
    return 0


def export(arguments: argparse.Namespace) -> int:
    from hemstitch.report import export_csv, export_tensorboard

    if arguments.to in ("loglikelihoods", "onnx"):
        from hemstitch import commands

        if arguments.to == "onnx":
            print(commands.export_onnx(arguments.run, arguments.out, arguments.frames))
        else:
            print(commands.export_loglikelihoods(arguments.run, arguments.part, arguments.out))
    elif arguments.to == "csv":
        print(export_csv(arguments.run, arguments.out or arguments.run / "metrics.csv"))
    else:
        print(export_tensorboard(arguments.run, arguments.out or arguments.run / "tensorboard"))
    return 0


def sweep(arguments: argparse.Namespace) -> int:
    from hemstitch import commands

    return commands.run_sweep(
        arguments.recipe, arguments.settings, arguments.over, seeds=arguments.seeds, out=arguments.out,
        by=arguments.by, refine=arguments.refine, stop_hopeless=arguments.stop_hopeless, quiet=arguments.quiet,
    )  # fmt: skip


def cross_validate(arguments: argparse.Namespace) -> int:
    from hemstitch import commands

    return commands.run_cross_validation(
        arguments.methods, arguments.settings, folds=arguments.folds, seeds=arguments.seeds,
        fold_seed=arguments.fold_seed, out=arguments.out, official=arguments.official, quiet=arguments.quiet,
    )  # fmt: skip


def reproduce(arguments: argparse.Namespace) -> int:
    from hemstitch import commands

    if arguments.markdown:
        return commands.write_markdown(*arguments.markdown)
    if arguments.combinations:
        return commands.write_combinations(arguments.combinations)
    if arguments.list or not arguments.entries:
        return commands.list_entries(arguments.out, arguments.scale)
    return commands.reproduce(arguments.entries, arguments.scale, arguments.out, arguments.keep, arguments.quiet)


def align(arguments: argparse.Namespace) -> int:
    from hemstitch import commands

    return commands.align(arguments.run, arguments.part, arguments.format, arguments.out)


def transcribe(arguments: argparse.Namespace) -> int:
    from hemstitch import commands

    return commands.transcribe(arguments.run, arguments.files, arguments.format, arguments.out, arguments.settings,
                               arguments.longest, arguments.resample, commands.Details.of(arguments))  # fmt: skip


def rescore(arguments: argparse.Namespace) -> int:
    from hemstitch import commands

    try:
        weights = [float(weight) for weight in arguments.weights.split(",")]
    except ValueError:
        raise ConfigError(f"--weights must be numbers such as 0,0.5,1, got {arguments.weights!r}") from None
    return commands.rescore(arguments.run, arguments.model, arguments.part, arguments.best, weights,
                            arguments.lattice_beam, arguments.settings)  # fmt: skip


def data(arguments: argparse.Namespace) -> int:
    from hemstitch import commands

    if arguments.importer == "check":
        if arguments.settings:
            raise ConfigError(f"`data check` takes no options, got {' '.join(arguments.settings)}")
        return commands.check_corpus(arguments.folder)
    return commands.import_corpus(arguments.importer, arguments.source, arguments.folder, arguments.settings)


def lm(arguments: argparse.Namespace) -> int:
    from hemstitch import commands

    return commands.estimate_language_model(arguments.folder, arguments.order, arguments.method, arguments.split,
                                            arguments.text, arguments.out)  # fmt: skip


def download(arguments: argparse.Namespace) -> int:
    from hemstitch import commands

    return commands.download(arguments.name, arguments.folder, arguments.checksum)


def plan(arguments: argparse.Namespace) -> int:
    from hemstitch import commands
    from hemstitch.parallel import Prices

    prices = Prices(worker=arguments.worker_price, server=arguments.server_price)
    try:
        workers = [int(count) for count in arguments.workers.split(",") if count]
    except ValueError:
        raise ConfigError(f"--workers takes numbers such as 1,4,16, got {arguments.workers!r}") from None
    return commands.show_plan(arguments.recipe, arguments.settings, workers, prices, arguments.samples,
                              arguments.parameters)  # fmt: skip


def list(arguments: argparse.Namespace) -> int:
    from hemstitch import commands

    return commands.show_lists()


def doctor(arguments: argparse.Namespace) -> int:
    from hemstitch import commands

    return commands.doctor()
