import sys

import pytest

from edgeprune import registry
from edgeprune.errors import MissingDependency, NameUnknown


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A folder on sys.path with modules of the user's own."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


@pytest.mark.parametrize("family", registry.families())
def test_every_member_of_every_family_can_be_had(family):
    names = registry.names(family)
    assert names == sorted(set(names))
    for name in names:
        assert "_" not in name or family in registry.FORMULAS
        if family in registry.DEEDS:
            assert registry.module(family, name).__doc__
        elif family in registry.FACTS:
            assert registry.file(family, name).is_file()
        else:
            assert registry.function(family, name).__name__ == name


def test_private_modules_are_no_members():
    assert "-probe" not in registry.names("backends")


def test_a_dash_stands_for_an_underscore():
    assert registry.module("models", "digits-resnet").__name__ == "edgeprune.models.digits_resnet"


def test_a_module_from_outside_is_named_by_its_dotted_path(outside):
    package = outside / "own_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "stage.py").write_text("HERE = True\n")
    assert registry.module("stages", "own_package.stage").HERE


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: registry.names("modles"), r"no family 'modles'.* Did you mean 'models'\?"),
        (
            lambda: registry.module("models", "resnet9"),
            r"no model 'resnet9'.* Did you mean 'resnet8'\? Known: .*digits-resnet",
        ),
        (lambda: registry.module("stages", "own_nothing.stage"), "no stage 'own_nothing.stage'"),
        (lambda: registry.function("schedules", "polynomal"), r"no schedule 'polynomal'.* Did you mean 'polynomial'\?"),
        (lambda: registry.function("criteria", "luck"), "no criterion 'luck'.* Known: .*magnitude"),
        (lambda: registry.file("targets", "rpi44"), r"no target 'rpi44'.* Did you mean 'rpi4'\?"),
        (lambda: registry.file("targets", "mine.yaml"), "no file 'mine.yaml'.* existing target file"),
        (lambda: registry.attribute("own_nothing:build"), "no module 'own_nothing'.* module:function"),
        (lambda: registry.attribute("json:dump5"), r"no name in json 'dump5'.* Did you mean 'dumps?'\?"),
        (lambda: registry.attribute("json"), "module:function"),
    ],
)
def test_an_unknown_word_is_met_with_the_nearest_known(ask, message):
    with pytest.raises(NameUnknown, match=message):
        ask()


def test_a_missing_import_inside_a_module_says_what_to_install(outside):
    (outside / "own_stage.py").write_text("import own_missing_package\n")
    (outside / "own_package2").mkdir()
    (outside / "own_package2" / "__init__.py").touch()
    (outside / "own_package2" / "stage.py").write_text("import own_missing_package\n")
    with pytest.raises(MissingDependency, match="pip install own_missing_package"):
        registry.module("stages", "own_package2.stage")
    with pytest.raises(NameUnknown, match="own_missing_package"):
        registry.attribute("own_stage:function")


def test_file_takes_a_path(tmp_path):
    path = tmp_path / "mine.yml"
    path.touch()
    assert registry.file("recipes", str(path)) == path


def test_attribute_reaches_into_a_module():
    assert registry.attribute("json:dumps") is __import__("json").dumps
