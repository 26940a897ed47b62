"""Every recipe in ``pipelines/recipes/methods/`` keeps the family's contract, because it is there."""

from __future__ import annotations

import doctest

import pytest
from pydantic import ValidationError

from edgeprune import catalogue, cli, recipe, registry
from edgeprune.errors import NameUnknown, RecipeError

METHODS = registry.names("methods")
TAIL = ["quantize", "convert", "verify", "profile", "report"]
LEAGUE = (0.5, 0.9, 0.98)  # shares that go, as the leagues of the docs ask for them
OWN = {"title": "Own", "papers": ['A. Uthor, "Own" (2020)'], "acts": "after", "removes": "weights", "cost": "none"}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_is_and_ends_in_int8_with_the_proof(name):
    loaded = recipe.load(name)
    assert loaded.name == name
    assert loaded.file.description
    assert loaded.file.method is not None
    assert [spec.stage for spec in loaded.stages][-len(TAIL) :] == TAIL


@pytest.mark.parametrize("name", METHODS)
def test_every_aim_takes_what_the_league_asks(name):
    loaded = recipe.load(name)
    method, plain = loaded.file.method, loaded.resolved()
    for share in LEAGUE if method.aim else ():
        asked = method.asked(share)
        if asked is not None:
            recipe.load(plain, {method.aim: asked})
    # macs and params of the stage shrink are what is left
    assert method.aim is None or method.stays == (method.aim.rpartition(".")[2] in ("macs", "params"))


@pytest.mark.parametrize("name", METHODS)
def test_methods_leave_any_count_of_channels_as_their_papers_do(name):
    """In the target's multiples a network with layers of six channels could hardly lose any; 2:4 takes channels in fours."""
    stages = recipe.load(name).stages
    pattern = any(getattr(spec.options, "granularity", None) == "n:m" for spec in stages)
    for spec in stages:
        if spec.stage == "shrink" or (spec.stage == "gate" and spec.options.granularity == "channel"):
            assert spec.options.multiples == (4 if pattern else 1)


def test_no_recipe_has_the_name_of_a_method():
    assert not set(METHODS) & set(registry.names("recipes"))


def test_titles_tell_methods_apart():
    titles = [row["title"] for row in catalogue.methods().values()]
    assert len(titles) == len(set(titles))


def test_a_method_is_found_like_a_recipe_and_an_unknown_word_meets_both():
    with pytest.raises(NameUnknown, match=r"no recipe 'poly5'\. Did you mean 'poly50'\? Known: .*one-shot"):
        recipe.load("poly5")
    with pytest.raises(NameUnknown, match=r"Did you mean 'one-shot'\?"):
        recipe.load("oneshot")


def _with(**method):
    return {"method": {**OWN, **method}, "stages": {"prune": {"epochs": 1}}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            _with(aim="stages.prune.finl"),
            r"method\.aim is 'stages\.prune\.finl', but there is no 'finl'.* Did you mean 'final'\?",
        ),
        (_with(aim="stages.prun.final"), r"no 'prun' in this recipe\. Did you mean 'prune'\? Known there: prune"),
        (_with(aim="stages.prune.final.deep"), r"no 'deep' in this recipe\. Known there: none"),
        (_with(acts="later"), r"method\.acts: got 'later'"),
        (_with(papers=["somebody, 2020"]), r"method\.papers\.0: got 'somebody, 2020'"),
        (_with(papers=[]), r"method\.papers: got \[\]"),
        (_with(titel="x"), r"unknown key 'method\.titel'\. Did you mean 'title'\?"),
        ({"method": {}, "stages": {"report": {}}}, r"the key 'method\.title' is missing"),
    ],
)
def test_a_method_that_does_not_validate_is_named_with_its_place(data, message):
    with pytest.raises(RecipeError, match=message):
        recipe.parse(data, "mine.yaml")


def test_a_member_of_the_family_without_its_block_is_named(monkeypatch):
    dense = recipe.load("dense")
    monkeypatch.setattr(recipe, "load", lambda name: dense)
    with pytest.raises(RecipeError, match=rf"{METHODS[0]}\.yaml .* add a method block"):
        catalogue.methods()


def test_what_is_asked_of_the_aim():
    plain = recipe.Method(**OWN)
    assert plain.asked(0.9) == 0.9
    assert plain.model_copy(update={"stays": True}).asked(0.9) == 0.1
    half = plain.model_copy(update={"besides": 0.5})
    assert (half.asked(0.75), half.asked(0.5), half.asked(0.4)) == (0.5, None, None)
    with pytest.raises(ValidationError):
        recipe.Method(**OWN, besides=1.0)


def test_list_methods_shows_every_row_with_paper_and_cost(capsys):
    assert cli.run(["list", "methods"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(name in shown for name in METHODS)


def test_docstrings():
    assert doctest.testmod(recipe).failed == 0
