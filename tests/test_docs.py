"""The documentation says what is true: generated pages are current, nothing is left out, links lead somewhere."""

from __future__ import annotations

import re
import runpy
from importlib import metadata
from pathlib import Path

import click
import pytest
import setuptools
from packaging.requirements import Requirement
from scripts import loaded

from edgeprune import catalogue, cli, recipe, registry, yaml_files

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
}
DOCS = "\n".join(PAGES.values())


def _commands(command, words):
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, f"{words} {name}")


def test_generated_pages_are_current():
    assert [path.name for path in loaded("docs", "generate").outdated()] == [], "run: make docs"


def test_a_page_that_is_out_of_date_is_noticed(monkeypatch, tmp_path):
    generate = loaded("docs", "generate")
    (tmp_path / "recipes.md").write_text("# By hand\n\n<!-- begin schedules -->\n<!-- end schedules -->\n")
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    assert {path.name for path in generate.outdated()} == {"recipes.md", "cli.md", "recipe.schema.json"}
    monkeypatch.setattr("sys.argv", ["generate.py"])
    assert generate.main() == 0
    assert "polynomial" in (tmp_path / "recipes.md").read_text()
    assert generate.outdated() == []


@pytest.mark.parametrize(("words", "command"), list(_commands(cli.cli, "edgeprune")))
def test_every_command_and_option_is_documented(words, command):
    assert f"## {words}\n" in PAGES["docs/cli.md"]
    section = PAGES["docs/cli.md"].split(f"## {words}\n")[1].split("\n## ")[0]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert all(name in section for name in parameter.opts)


@pytest.mark.parametrize("family", registry.families())
def test_every_member_of_every_family_is_documented(family):
    for name in registry.names(family):
        assert f"`{name}`" in DOCS


def test_every_option_of_every_stage_is_documented():
    for stage in registry.names("stages"):
        section = PAGES["docs/recipes.md"].split(f"### `{stage}`")[1].split("\n### ")[0]
        assert all(f"| `{option}` |" in section for option in registry.module("stages", stage).Options.model_fields)


def test_every_criterion_is_documented_with_its_parts():
    section = PAGES["docs/criteria.md"].split("<!-- begin criteria -->")[1].split("<!-- end criteria -->")[0]
    rows = {
        line.split("`")[1]: re.split(r"(?<!\\) \| ", line) for line in section.splitlines() if line.startswith("| `")
    }
    assert list(rows) == registry.names("criteria")
    assert all(len(cells) == 7 and all(cell.strip("| ") for cell in cells) for cells in rows.values())
    signals = {signal for name in rows for signal in catalogue.criterion(name).signals}
    assert all(f"`{signal}`" in PAGES["docs/criteria.md"].split("<!-- end criteria -->")[1] for signal in signals)


def test_every_rewrite_is_documented_in_its_order():
    from edgeprune.keras import preparation

    section = PAGES["docs/models.md"].split("<!-- begin rewrites -->")[1].split("<!-- end rewrites -->")[0]
    rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    assert rows == [f"| `{rewrite.name}`" for rewrite in preparation.REWRITES]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)", PAGES[page]):
        assert link.startswith("https://") or (ROOT / page).parent.joinpath(link).exists(), link


@pytest.mark.parametrize("page", PAGES)
def test_yaml_examples_are_yaml(page):
    for text in re.findall(r"```yaml\n(.*?)```", PAGES[page], re.DOTALL):
        data = yaml_files.parse(text, page)
        if data and "stages" in data:
            recipe.parse(data, page)


@pytest.mark.parametrize("page", PAGES)
def test_python_examples_compile(page):
    for text in re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL):
        compile(text, page, "exec")


@pytest.mark.slow
@pytest.mark.long
def test_the_example_with_a_live_model_runs(tmp_path, monkeypatch, capsys):
    """As it stands in docs/python.md, but for the number of epochs."""
    (text,) = re.findall(r"## A live model and arrays\n+```python\n(.*?)```", PAGES["docs/python.md"], re.DOTALL)
    short = text.replace("epochs=10", "epochs=1, verbose=0").replace(
        'recipe="poly50"',
        'recipe="poly50", overrides={"stages.prune.epochs": 1, "stages.quantize.epochs": 1, "stages.profile.count": False}',
    )
    monkeypatch.chdir(tmp_path)
    exec(compile(short, "docs/python.md", "exec"), {})  # noqa: S102 - our own page
    assert "'sparsity': 0.5" in capsys.readouterr().out
    assert (tmp_path / "runs" / "digits_resnet-rpi4-poly50" / "report.html").exists()


@pytest.mark.parametrize("page", PAGES)
def test_command_examples_use_commands_and_options_that_exist(page):
    known = dict(_commands(cli.cli, "edgeprune"))
    for line in re.findall(r"^(edgeprune .*)$", PAGES[page], re.MULTILINE):
        for call in line.split("#")[0].split("&&"):
            words = call.split()
            name = max((name for name in known if words[: len(name.split())] == name.split()), key=len)
            options = {opt for parameter in known[name].params for opt in parameter.opts} | {"--help"}
            assert {word for word in words if word.startswith("--")} <= options, line


def test_every_dependency_is_documented_with_its_range(monkeypatch):
    given = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path(str(ROOT / "setup.py"))
    table = set(re.findall(r"\| ([\w-]+) \| ([^|]+) \| [^|]+ \|", PAGES["docs/dependencies.md"]))
    declared = [*given["install_requires"], *(line for extra in given["extras_require"].values() for line in extra)]
    for requirement in map(Requirement, declared):
        ranges = {
            str(Requirement(f"x{text}").specifier) for name, text in table if name == requirement.name and text != "any"
        }
        assert str(requirement.specifier) in ranges or not str(requirement.specifier), requirement


def test_the_installed_metadata_is_of_this_tree():
    assert metadata.version("edgeprune") == __import__("edgeprune").__version__


def test_contributing_stays_short():
    sections = re.split(r"^## ", PAGES["CONTRIBUTING.md"], flags=re.MULTILINE)[1:]
    assert {section.splitlines()[0] for section in sections} >= {
        f"Add a {kind}" for kind in ("criterion", "target", "stage", "model", "backend")
    }
    assert all(len(section.strip().splitlines()) <= 15 for section in sections)
