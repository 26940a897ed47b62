import json
import sys

import pytest

from edgeprune import recipe, registry, yaml_files
from edgeprune.errors import NameUnknown, RecipeError

STAGE = '''
from pydantic import Field
from edgeprune.validation import Strict

class Options(Strict):
    """Options of the stage."""
    final: float = Field(0.5, ge=0, lt=1)
    epochs: int = 1
'''


@pytest.fixture(autouse=True)
def outside_stage(tmp_path, monkeypatch):
    """A stage from outside the project, named by its dotted path."""
    package = tmp_path / "own_stages"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "shake.py").write_text(STAGE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.startswith("own_stages")]:
        del sys.modules[name]


def one_stage(**options):
    return {"stages": {"shake": {"stage": "own_stages.shake", **options}}}


def test_the_example_is_a_recipe():
    example = recipe.parse(yaml_files.parse(recipe.EXAMPLE, "example"), "example")
    assert [spec.stage for spec in example.stages] == [
        "train",
        "prune",
        "quantize",
        "convert",
        "verify",
        "profile",
        "report",
    ]


@pytest.mark.parametrize("name", registry.names("recipes"))
def test_every_recipe_loads_under_its_own_name(name):
    loaded = recipe.load(name)
    assert loaded.name == name
    assert loaded.file.description


def test_the_default_is_one_of_them():
    assert recipe.DEFAULT in registry.names("recipes")


def test_a_stage_from_outside_with_a_label_of_its_own():
    loaded = recipe.load(one_stage(final=0.25))
    assert [(spec.label, spec.stage, spec.options.final, spec.options.epochs) for spec in loaded.stages] == [
        ("shake", "own_stages.shake", 0.25, 1)
    ]


def test_resolved_is_the_whole_recipe():
    resolved = recipe.load(one_stage()).resolved()
    assert resolved["stages"] == {"shake": {"stage": "own_stages.shake", "final": 0.5, "epochs": 1}}
    assert resolved["data"] and "max_drop" in resolved["budget"]
    again = recipe.load(yaml_files.parse(yaml_files.dump(resolved), "resolved"))
    assert again.resolved() == resolved


def test_a_mapping_given_is_not_changed():
    given = one_stage()
    recipe.load(given, {"stages.shake.final": 0.1})
    assert given == one_stage()


def test_stages_keep_their_order():
    second = {"stages": {"b": {"stage": "own_stages.shake"}, "a": {"stage": "own_stages.shake"}}}
    assert [spec.label for spec in recipe.load(second).stages] == ["b", "a"]


def test_every_stage_that_trains_must_spread_if_asked_to():
    spread = {
        "distribute": "mirrored",
        "stages": {"train": None, "shrink": {"macs": 0.5}, "quantize": None, "convert": None},
    }
    assert recipe.load(spread).file.distribute == "mirrored"
    with pytest.raises(
        RecipeError, match=r"distribute: a sparsify stage \(stages\.sparsify\) decides .* one device .* Leave"
    ):
        recipe.load({**spread, "stages": {"train": None, "sparsify": {"final": 0.5}}})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            one_stage(finl=0.5),
            r"unknown key 'stages\.shake\.finl'\. Did you mean 'final'\? Known keys there: epochs, final\.",
        ),
        (one_stage(final="half"), r"stages\.shake\.final: got 'half'; input should be a valid number"),
        (one_stage(final=1.0), r"stages\.shake\.final: got 1\.0; input should be less than 1"),
        (one_stage(epochs=2.0), r"stages\.shake\.epochs: got 2\.0; input should be a valid integer"),
        ({"stages": {"shake": 3}}, r"stages\.shake: got 3"),
        (
            {"stages": {"prun": {}}},
            r"stages\.prun: There is no stage 'prun'\. Did you mean 'prune'\? Known: .*quantize",
        ),
        ({"stages": {}}, "a recipe needs at least one stage"),
        ({}, "the key 'stages' is missing"),
        ({**one_stage(), "sed": 1}, r"unknown key 'sed'\. Did you mean 'seed'\?"),
        ({**one_stage(), "seed": -1}, "seed: got -1; input should be greater than or equal to 0"),
        ({**one_stage(), "budget": {"max_drp": 1}}, r"unknown key 'budget\.max_drp'\. Did you mean 'max_drop'\?"),
        ({**one_stage(), "data": {"calibraton": 1}}, r"unknown key 'data\.calibraton'\. Did you mean 'calibration'\?"),
        ([], r"expected a mapping with the keys .*stages, got \[\]"),
    ],
)
def test_what_does_not_validate_is_named_with_its_place(data, message):
    with pytest.raises(RecipeError, match=message):
        recipe.parse(data, "mine.yaml")


@pytest.mark.parametrize("late", ["train", "prune", "quantize"])
def test_what_quantize_leaves_is_not_trained_or_pruned_again(late):
    data = {"stages": {"quantize": None, "again": {"stage": late}, "convert": None}}
    with pytest.raises(
        RecipeError, match=rf"stages\.again \({late}\) comes after stages\.quantize .*move again before"
    ):
        recipe.load(data)


@pytest.mark.parametrize("late", sorted(set(registry.names("stages")) - {"evaluate", "verify", "profile", "report"}))
def test_what_is_in_the_file_already_is_not_made_anew(late):
    data = {"stages": {"convert": None, "again": {"stage": late}}}
    if late == "shrink":
        data["stages"]["again"]["ratio"] = 0.5
    with pytest.raises(RecipeError, match=rf"stages\.again \({late}\) comes after stages\.convert .*move again before"):
        recipe.load(data)


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("stages:\n  shake: {stage: own_stages.shake, fnal: 1}\n")
    with pytest.raises(RecipeError, match=r"mine\.yaml: unknown key"):
        recipe.load(path)


@pytest.mark.parametrize(("name", "nearest"), [("poly5", "poly50"), ("Poly50", "poly50")])
def test_an_unknown_recipe_is_met_with_the_nearest(name, nearest):
    with pytest.raises(NameUnknown, match=rf"no recipe '{name}'\. Did you mean '{nearest}'\?"):
        recipe.load(name)


def test_set_changes_single_values():
    loaded = recipe.load(one_stage(), {"stages.shake.final": 0.6, "seed": 3, "budget.max_drop": 0.01})
    assert (loaded.stages[0].options.final, loaded.seed, loaded.file.budget.max_drop) == (0.6, 3, 0.01)


def test_set_makes_the_parents_of_an_empty_stage():
    assert recipe.load({"stages": {"prune": None}}, {"stages.prune.final": 0.6}).stages[0].options.final == 0.6


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "stages.shak.final",
            r"--set stages\.shak\.final: this recipe has no stage 'shak'\. Did you mean 'shake'\? It has: shake\.",
        ),
        ("stages.shake.final.deep", "'stages.shake.final' is no mapping, so it has no key 'deep'"),
        ("stages.shake.fnal", r"unknown key 'stages\.shake\.fnal'\. Did you mean 'final'"),
        ("seed.a.b", "'seed' is no mapping, so it has no key 'a'"),
    ],
)
def test_set_refuses_what_is_not_there(key, message):
    with pytest.raises(RecipeError, match=message):
        recipe.load({**one_stage(final=0.5), "seed": 1}, {key: 0.5})


@pytest.mark.parametrize("stage", registry.names("stages"))
def test_every_stage_has_options_with_a_sentence_each_and_a_run(stage):
    module = registry.module("stages", stage)
    assert callable(module.run)
    for name, field in module.Options.model_fields.items():
        assert field.description, f"{stage}.{name} has no description"


def test_the_schema_knows_every_stage_and_option():
    schema = recipe.json_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert schema["title"] == "edgeprune recipe"
    for stage in registry.names("stages"):
        assert (
            schema["$defs"][f"stage-{stage}"]["properties"].keys()
            == registry.module("stages", stage).Options.model_fields.keys()
        )
