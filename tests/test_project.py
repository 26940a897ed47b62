import pytest

from edgeprune import project, yaml_files
from edgeprune.errors import RecipeError, RunFolderError


def write(folder, text):
    (folder / project.NAME).write_text(text)
    return folder


def test_a_folder_without_a_file_is_no_project(tmp_path):
    assert project.find(tmp_path) is None


def test_an_empty_file_is_a_project_that_says_nothing(tmp_path):
    found = project.find(write(tmp_path, "# nothing yet\n"))
    assert found.settings() == {}


def test_settings_are_arguments_of_build(tmp_path):
    (tmp_path / "m.h5").touch()
    text = (
        "model: m.h5\ndata: keras:cifar10\ntarget: rpi5\nrecipe: poly50\nout: runs/a\nset: {stages.prune.final: 0.6}\n"
    )
    assert project.find(write(tmp_path, text)).settings() == {
        "model": str(tmp_path / "m.h5"),
        "data": "keras:cifar10",
        "target": "rpi5",
        "recipe": "poly50",
        "out": str(tmp_path / "runs/a"),
        "overrides": {"stages.prune.final": 0.6},
    }


def test_a_recipe_may_stand_in_the_file(tmp_path):
    assert project.find(write(tmp_path, "recipe:\n  stages: {prune: {}}\n")).settings() == {
        "recipe": {"stages": {"prune": {}}}
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "modle: m.h5\n",
            r"edgeprune\.yaml: unknown key 'modle'\. Did you mean 'model'\? Known keys there: data, model, out",
        ),
        ("target: 4\n", "target: got 4; input should be a valid string"),
        ("set: [a]\n", r"set: got \['a'\]"),
        ("- model\n", "expected a mapping"),
        ("model: [\n", "not valid YAML"),
        ("model: ''\n", "model: got ''"),
    ],
)
def test_a_file_that_does_not_validate_is_refused(tmp_path, text, message):
    with pytest.raises(RecipeError, match=message):
        project.find(write(tmp_path, text))


def test_words_on_the_command_line_win_key_by_key(tmp_path):
    write(tmp_path, "model: a:b\ndata: keras:mnist\ntarget: rpi5\nset: {seed: 1, stages.prune.final: 0.5}\n")
    words = {"model": "other.h5", "data": None, "target": None, "overrides": {"seed": 2}, "force": False}
    assert project.settle(tmp_path, words) == {
        "model": "other.h5",
        "data": "keras:mnist",
        "target": "rpi5",
        "overrides": {"seed": 2, "stages.prune.final": 0.5},
        "force": False,
    }


def test_without_a_project_only_the_words_count(tmp_path):
    assert project.settle(tmp_path, {"model": None, "target": "rpi5", "overrides": {}}) == {
        "target": "rpi5",
        "overrides": {},
    }


def test_a_resumed_build_asks_the_project_for_its_folder_only(tmp_path):
    write(tmp_path, "model: a:b\ntarget: rpi5\nrecipe: nm24\nset: {seed: 1}\nout: runs/a\n")
    words = {"model": None, "resume": True, "overrides": {}}
    assert project.settle(tmp_path, words) == {"out": str(tmp_path / "runs/a"), "resume": True, "overrides": {}}


def test_init_finds_the_only_model_and_the_only_data(tmp_path):
    (tmp_path / "net.keras").touch()
    (tmp_path / "samples.npz").touch()
    project.init(tmp_path)
    settings = project.find(tmp_path).settings()
    assert settings == {
        "model": str(tmp_path / "net.keras"),
        "data": str(tmp_path / "samples.npz"),
        "target": "rpi4",
        "recipe": "rpi4",
    }


def test_init_guesses_nothing_among_several(tmp_path):
    (tmp_path / "a.h5").touch()
    (tmp_path / "b.keras").touch()
    text = project.init(tmp_path).read_text()
    assert "# model: a.h5\n# model: b.keras\n" in text
    assert yaml_files.parse(text, "x").keys() == {"target", "recipe"}


def test_init_takes_words_and_quotes_them(tmp_path):
    project.init(tmp_path, {"model": "nets: mine.h5", "target": "rpi5", "data": None, "recipe": None})
    written = yaml_files.read(tmp_path / project.NAME)
    assert written == {"model": "nets: mine.h5", "target": "rpi5", "recipe": "rpi4"}


def test_init_comments_every_key(tmp_path):
    text = project.init(tmp_path).read_text()
    assert all(f"{key}:" in text for key in project.ProjectFile.model_fields)


def test_init_replaces_nothing_unasked(tmp_path):
    write(tmp_path, "target: rpi5\n")
    with pytest.raises(RunFolderError, match=r"edgeprune\.yaml is there already.*--force"):
        project.init(tmp_path)
    assert project.find(tmp_path).file.target == "rpi5"
    project.init(tmp_path, force=True)
    assert project.find(tmp_path).file.target == "rpi4"
