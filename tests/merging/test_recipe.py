import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from lightning_objectives import cli

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "merging.md"


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """Three networks of one number, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name, value in (("base", 1.0), ("a", 2.0), ("b", 4.0)):
        state = {"w": torch.tensor([value])}
        torch.save({"state_dict": state, "pytorch-lightning_version": "2.6.6", "global_step": 1}, f"{name}.ckpt")


def merged(recipe, *words):
    Path("recipe.yaml").write_text(recipe if isinstance(recipe, str) else yaml.safe_dump(recipe))
    cli.main(["merge", "--recipe", "recipe.yaml", *words])
    return torch.load("out.ckpt", weights_only=True)["state_dict"]["w"].item()


PLAIN = {"method": "WeightedAverage", "files": ["a.ckpt", "b.ckpt"], "out": "out.ckpt"}
TIES = {"method": "TIES", "files": ["a.ckpt", "b.ckpt"], "base": "base.ckpt", "out": "out.ckpt"}


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (PLAIN, 3.0),
        ({**PLAIN, "weights": [3, 1]}, 2.5),
        ({**PLAIN, "settings": {"shares": [3, 1]}}, 2.5),
        ({**PLAIN, "weights": None, "base": None, "settings": None}, 3.0),
        ({**PLAIN, "files": "a.ckpt"}, 2.0),
        ({**TIES, "settings": {"density": 1, "scale": 0.5}}, 2.0),
        ({**TIES, "settings": {"density": "1.0"}, "seed": 3, "order": "given", "force": False}, 3.0),
    ],
)
def test_a_recipe_is_the_command(recipe, expected):
    """TIES: the changes 1 and 3 have one sign, so that the mean 2 is added."""
    assert merged(recipe) == expected


def test_words_count_more_than_the_recipe():
    assert merged({**TIES, "settings": {"density": 1, "scale": 0.5}}, "--scale", "1") == 3.0
    assert merged({**PLAIN, "weights": [1, 1]}, "b.ckpt", "b.ckpt", "--force") == 4.0
    assert merged({**PLAIN, "out": "other.ckpt"}, "--force", "--out=out.ckpt") == 3.0
    assert not Path("other.ckpt").exists()


def test_a_dry_run_writes_nothing(capsys):
    Path("recipe.yaml").write_text(yaml.safe_dump({**PLAIN, "dry_run": True}))
    cli.main(["merge", "--recipe=recipe.yaml"])
    assert not Path("out.ckpt").exists()
    printed = capsys.readouterr()
    assert printed.out.endswith("wrote nothing (--dry-run)\n")
    assert "100%" not in printed.err
    Path("out.ckpt").write_text("mine")
    cli.main(["merge", "--recipe=recipe.yaml"])
    assert Path("out.ckpt").read_text() == "mine"


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({**PLAIN, "mehtod": "TIES"}, "unknown key 'mehtod'. Did you mean 'method'?"),
        ({**PLAIN, "dry-run": True}, "unknown key 'dry-run'. Did you mean 'dry_run'?"),
        ({**PLAIN, "shares": [1, 2]}, "unknown key 'shares'. It belongs under settings:."),
        ({**PLAIN, "recipe": "other.yaml"}, "unknown key 'recipe'."),
        ({**PLAIN, 3: 4}, "unknown key 3."),
        ({**TIES, "settings": {"densty": 0.5}}, "TIES has no setting densty. Did you mean 'density'?"),
        ({**TIES, "settings": [1]}, "settings: [1] must be lines such as"),
        ({**TIES, "settings": {"density": "x"}}, "--density: invalid float value: 'x'"),
        ({**TIES, "settings": {"density": {"a": 1}}}, "--density: invalid float value"),
        ({**PLAIN, "method": "WeightedAvrage"}, "'WeightedAvrage' is no merge. Did you mean 'WeightedAverage'?"),
        ({**PLAIN, "method": 3}, "method: 3 must be a text"),
        ({**PLAIN, "weights": [1, 2, 3]}, "are 3, but there are 2 files"),
        ({**PLAIN, "weights": [1, 2], "settings": {"shares": [1, 2]}}, "both weights: and the setting shares"),
        ({**TIES, "weights": [1, 2]}, "TIES has no setting shares."),
        ({**PLAIN, "files": [1]}, "files: [1] must be a list of texts"),
        ({**PLAIN, "files": []}, "files: [] must be a list of texts"),
        ({**PLAIN, "seed": True}, "seed: True must be a whole number"),
        ({**PLAIN, "force": "yes"}, "force: 'yes' must be true or false"),
        ({**PLAIN, "order": "newest"}, "order='newest' must be 'step' or 'given'"),
        ({"files": ["a.ckpt"]}, "out must be given: say -o OUT"),
        ({"method": "TIES"}, "files and out must be given"),
        ([1, 2], "holds list, but a recipe is lines such as"),
        ("", "holds NoneType, but a recipe is lines such as"),
        ("method: [", "recipe.yaml cannot be read as YAML"),
        ("method: !!python/name:os.system", "recipe.yaml cannot be read as YAML"),
        ("method: TIES\nmethod: WSM", "'method' stands twice: leave one of them out"),
        ("settings: {a: 1, a: 2}", "'a' stands twice: leave one of them out"),
    ],
)
def test_a_wrong_recipe_is_refused(capsys, recipe, message):
    with pytest.raises(SystemExit) as stop:
        merged(recipe)
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not Path("out.ckpt").exists()


def test_a_recipe_that_is_not_there_is_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["merge", "--recipe", "none.yaml"])
    assert "none.yaml" in capsys.readouterr().err


def test_every_option_of_the_command_is_a_key(capsys):
    """Also one that is added some day: each option that is no setting is known to the recipe."""
    with pytest.raises(SystemExit):
        cli.main(["merge", "--help"])
    options = {*re.findall(r"--([a-z-]+)", capsys.readouterr().out)} - {"help", "recipe", "buffer"}
    for option in [*options, "buffers"]:
        Path("recipe.yaml").write_text(f"{option.replace('-', '_')}: null\nno_key: 1")
        with pytest.raises(SystemExit):
            cli.main(["merge", "--recipe", "recipe.yaml"])
        message = capsys.readouterr().err
        assert "'no_key'" in message or "belongs under settings" in message, option


def test_the_recipes_and_commands_of_the_guide_run(capsys):
    text = GUIDE.read_text()
    recipes = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(recipes) == 2
    for recipe in recipes:
        Path("soup.yaml").write_text(recipe)
        cli.main(["merge", "--recipe", "soup.yaml", "--force"])
        assert torch.load("merged.ckpt", weights_only=True)["state_dict"]["w"].item() == pytest.approx(
            {"WeightedAverage": 2.6, "TIES": 2.0}[yaml.safe_load(recipe)["method"]]
        )
    Path("soup.yaml").write_text(recipes[0])
    for command in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        Path("merged.ckpt").unlink(missing_ok=True)
        cli.main(shlex.split(command)[1:])
        assert Path("merged.ckpt").exists() == ("--dry-run" not in command)
