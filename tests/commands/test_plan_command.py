"""hemstitch plan: a table that follows the cluster that is described."""

import pytest

from hemstitch.cli import main

SIZES = ["--samples", "64000", "--parameters", "1000000", "--train.batch_size", "32"]
ASYNC = ["--parallel.kind", "simulated-async", "--parallel.latency", "0",
         "--parallel.bandwidth", "0"]  # fmt: skip


def table(capsys, *arguments):
    assert main(["plan", *arguments]) == 0
    title, _, *rows = capsys.readouterr().out.strip().splitlines()
    return title, [row.split() for row in rows]


def test_asynchronous_workers_scale_and_cost(tiny_recipe, capsys):
    title, rows = table(capsys, str(tiny_recipe), *SIZES, *ASYNC, "--workers", "1,10", "--worker-price", "3.6",
                                "--server-price", "3.6")
    assert "64,000 samples" in title and "1,000,000 parameters" in title
    (alone, ten) = rows
    assert alone[0] == "1" and ten[0] == "10"
    speed, age = float(ten[-6]), float(ten[-4])
    assert speed == pytest.approx(10, rel=0.05) and age == pytest.approx(9, rel=0.1)
    assert float(alone[-1]) == pytest.approx(4, rel=0.05) and float(ten[-1]) == pytest.approx(2.2, rel=0.05)


def test_sizes_come_from_the_recipe(tiny_recipe, capsys):
    title, rows = table(capsys, str(tiny_recipe), "--parallel.kind", "virtual-averaging", "--parallel.every", "60")
    assert "samples" in title and len(rows) == 1 and rows[0][0] == "2"


def test_a_recipe_without_a_cluster_is_refused(tiny_recipe, capsys):
    assert main(["plan", str(tiny_recipe)]) == 2
    assert "describes no cluster" in capsys.readouterr().err
    assert main(["plan", str(tiny_recipe), *ASYNC, "--workers", "many"]) == 2
