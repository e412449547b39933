from pathlib import Path

import pytest

from hemstitch.errors import ConfigError
from hemstitch.train import load_recipe
from hemstitch.train._recipe import restore_recipe
from hemstitch.train._run_folder import next_run_path

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
IMAGES = '[data]\nkind = "images"\nsource = "x"\n'


def write(folder, text, name="recipe.toml"):
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_that_we_ship_is_valid_and_described(path):
    assert load_recipe(path).description


def test_values_come_from_default_parent_recipe_and_command_line_in_rising_precedence(tmp_path):
    write(tmp_path, IMAGES + "[train]\nepochs = 3\nbatch_size = 7\nkeep = 4\n", "parent.toml")
    path = write(tmp_path, 'extends = "parent.toml"\n[train]\nepochs = 5\nbatch_size = 8\n')
    recipe = load_recipe(path, ["--train.epochs", "6", "--update.lr=0.25"])
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.train.keep) == (6, 8, 4)
    assert (recipe.train.log_every, recipe.update.lr) == (50, 0.25)
    origins = {key: entry["origin"] for key, entry in recipe.with_origins().items()}
    assert origins["train.epochs"] == origins["update.lr"] == "command line"
    assert origins["train.batch_size"] == f"{path}:4"
    assert origins["train.keep"] == f"{tmp_path / 'parent.toml'}:7"
    assert origins["train.log_every"] == "default"


def test_a_section_that_gets_another_kind_starts_afresh(tmp_path):
    write(tmp_path, IMAGES + "[update]\nkind = 'sgd'\nlr = 0.5\nmomentum = 0.3\n", "parent.toml")
    path = write(tmp_path, 'extends = "parent.toml"\n[update]\nkind = "adam"\n')
    assert load_recipe(path).update.lr == 1e-3
    assert load_recipe(tmp_path / "parent.toml", ["--update.kind", "adamw"]).update.lr == 1e-3
    assert load_recipe(tmp_path / "parent.toml", ["--update.kind", "sgd"]).update.momentum == 0.3


def test_a_recipe_survives_the_run_folder(tmp_path):
    recipe = load_recipe(write(tmp_path, IMAGES), ["--model.hidden", "[5, 6]"])
    assert restore_recipe(recipe.with_origins()).with_origins() == recipe.with_origins()


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("[train]\nepoch = 3\n", [], r"unknown key 'train.epoch' \(.*recipe.toml:5\).*did you mean 'train.epochs'"),
        (
            "",
            ["--update.learning_rate", "1"],
            r"unknown key 'update.learning_rate' \(command line\) for update.kind = 'sgd': did you mean 'update.lr'",
        ),
        ("", ["--train.lr", "1"], r"did you mean 'update.lr'"),
        ("", ["--updat.lr", "1"], r"did you mean 'update.lr'"),
        ("[updates]\nlr = 1\n", [], r"unknown key 'updates.lr'.*did you mean 'update.lr'"),
        ("", ["--update.kind", "adan"], r"update.kind = 'adan'.*did you mean 'adam'"),
        ("", ["--model.kind", "feed-forward"], r"for data.kind = 'images'"),
        ("", ["--decode.beam", "1"], r"section \[decode\] does not apply to data.kind = 'images'"),
        ("[train]\nepochs = 2.5\n", [], r"train.epochs = 2.5 \(.*recipe.toml:5\): expected integer, got float"),
        ("[train]\nepochs = true\n", [], r"expected integer, got bool"),
        ("", ["--train.epochs", "many"], r"train.epochs = 'many' \(command line\): expected integer, got str"),
        ("", ["--model.hidden", "300"], r"expected list of integer, got int"),
        ("", ["--update.lr", "1e300"], r"update.lr = 1e\+300 \(command line\): expected a finite number of at most"),
        ("", ["--seed", str(2**70)], r"seed = \d+ \(command line\): expected 0 or above, below 2\^63"),
        ("", ["--train.epochs", "0"], r"\[train\]: epochs must be at least 1, got 0"),
        ("", ["--train.non_finite", "ignore"], r"expected one of 'raise', 'skip', 'roll-back'"),
        ("", ["--update.lr"], r"--update.lr needs a value"),
        ("", ["update.lr", "1"], r"unexpected argument 'update.lr'"),
        ("", ["--output-dir", "x"], r"unknown option --output_dir: the folder of a run is given by --run FOLDER"),
        ("[train\n", [], r"not valid TOML.*line 4"),
        ('extends = "recipe.toml"\n', [], r"extends"),
    ],
)
def test_a_mistake_is_answered_with_key_origin_and_remedy(tmp_path, text, settings, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(write(tmp_path, IMAGES + text), settings)


@pytest.mark.parametrize(
    ("kind", "setting", "message"),
    [
        ("update.kind=hessian-free", "update.damping=0", "damping must be above 0"),
        ("update.kind=hessian-free", "update.cg_tolerance=-1", "cg_tolerance must be at least 0"),
        ("update.kind=hessian-free", "update.gradient_factor=0.5", "gradient_factor must be at least 1"),
        ("update.kind=hessian-free", "update.num_pairs=0", "num_pairs must be at least 1"),
        ("update.kind=hessian-free", "update.switch_share=-1", r"switch_share must lie in \[0, 1\]"),
        ("parallel.kind=virtual-averaging", "parallel.straggle_probability=2", "straggle_probability must lie in"),
        ("parallel.kind=virtual-averaging", "parallel.cluster_seed=-1", "cluster_seed must be at least 0"),
        ("parallel.kind=virtual-averaging", "parallel.workers=0", "workers must be >= 1"),
        ("parallel.kind=simulated-async", "parallel.cluster_seed=-1", "cluster_seed must be at least 0"),
        ("parallel.kind=simulated-async", "parallel.decode_seconds=-1", "decode_seconds must be at least 0"),
        ("parallel.kind=simulated-async", "parallel.decoder_fetch_seconds=-1", "decoder_fetch_seconds must be"),
        ("parallel.kind=data-parallel", "parallel.timeout=1e30", "timeout must be > 0 and at most 1e"),
        ("parallel.kind=async", "parallel.patience=1e30", "patience must be > 0 and at most 1e"),
        ("order.kind=order-average", "order.strength=-1", "strength must be at least 0"),
    ],
)
def test_a_number_out_of_range_is_refused_by_its_name_before_anything_is_read(tmp_path, kind, setting, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(write(tmp_path, IMAGES), [f"--{kind}", f"--{setting}"])


@pytest.mark.parametrize(
    ("name", "folder"), [("a b", "a b-1"), ("../../x", "x-1"), ("a\0[b]", "a-b-1"), ("", "run-1"), ("日本", "日本-1")]
)
def test_runs_stay_in_their_folder_whatever_their_name(tmp_path, name, folder):
    assert next_run_path(tmp_path, name) == tmp_path / folder


def test_a_recipe_that_extends_itself_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="extends itself"):
        load_recipe(write(tmp_path, 'extends = "recipe.toml"\n'))


def test_a_missing_recipe_names_the_file(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere.toml"):
        load_recipe(tmp_path / "nowhere.toml")
