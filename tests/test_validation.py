from typing import Annotated, Literal

import pytest
from pydantic import Field

from edgeprune.errors import RecipeError
from edgeprune.validation import Strict, validate


class Inner(Strict):
    final: float = Field(0.5, ge=0, lt=1)
    schedule: Literal["polynomial", "constant"] = "polynomial"


class Outer(Strict):
    name: str
    epochs: int = 1
    inner: Inner | None = None
    many: list[Inner] = Field(default_factory=list)


def test_what_fits_becomes_a_frozen_object():
    outer = validate(Outer, {"name": "a", "inner": {"final": 0}}, "x.yaml", RecipeError)
    assert outer == Outer(name="a", inner=Inner(final=0.0))
    with pytest.raises(Exception, match="frozen"):
        outer.epochs = 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"name": "a", "epoch": 1},
            r"^x\.yaml: unknown key 'epoch'\. Did you mean 'epochs'\? Known keys there: epochs, inner, many, name\.$",
        ),
        (
            {"name": "a", "inner": {"finale": 1}},
            r"unknown key 'inner\.finale'\. Did you mean 'final'\? Known keys there: final, schedule\.",
        ),
        ({"name": "a", "many": [{}, {"x": 1}]}, r"unknown key 'many\.1\.x'\. Known keys there: final, schedule\."),
        ({}, r"^x\.yaml: the key 'name' is missing\. Add it\.$"),
        ({"name": "a", "epochs": "3"}, r"epochs: got '3'; input should be a valid integer"),
        ({"name": "a", "epochs": 1.5}, r"epochs: got 1\.5"),
        ({"name": "a", "epochs": True}, r"epochs: got True"),
        ({"name": 3}, r"name: got 3; input should be a valid string"),
        ({"name": "a", "inner": {"final": 1}}, r"inner\.final: got 1; input should be less than 1"),
        ({"name": "a", "inner": {"final": float("nan")}}, r"inner\.final: got nan; input should be a finite number"),
        (
            {"name": "a", "inner": {"schedule": "poly"}},
            r"inner\.schedule: got 'poly'; input should be 'polynomial' or 'constant'",
        ),
        ({"name": "a", "inner": 3}, r"inner: got 3"),
        ([1, 2], r"^x\.yaml: expected a mapping with the keys epochs, inner, many, name, got \[1, 2\]\.$"),
        (None, r"expected a mapping .* got None"),
        ({"name": "a", "epochs": "x" * 99}, r"got 'x{56}\.\.\.;"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(data, message):
    with pytest.raises(RecipeError, match=message):
        validate(Outer, data, "x.yaml", RecipeError)


def test_a_prefix_says_where_in_the_file_the_data_stands():
    with pytest.raises(RecipeError, match=r"unknown key 'stages\.prune\.finl'\. Did you mean 'final'"):
        validate(Inner, {"finl": 1}, "x.yaml", RecipeError, "stages.prune")
    with pytest.raises(RecipeError, match=r"x\.yaml: stages\.prune: expected a mapping"):
        validate(Inner, 3, "x.yaml", RecipeError, "stages.prune")


def test_a_key_that_is_no_word_is_an_unknown_key():
    with pytest.raises(RecipeError, match="7"):
        validate(Outer, {"name": "a", 7: 1}, "x.yaml", RecipeError)


class Several(Strict):
    """Options that take one thing or another."""

    floors: Annotated[int, Field(ge=1)] | dict[str, Annotated[int, Field(ge=1)]] | None = None
    scope: Literal["layer", "network"] | list[str] = "layer"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"floors": 0}, "file.yaml: floors: got 0; input should be greater than or equal to 1."),
        ({"floors": {"conv": 0}}, "file.yaml: floors.conv: got 0; input should be greater than or equal to 1."),
        ({"scope": "net"}, "file.yaml: scope: got 'net'; input should be 'layer' or 'network'."),
        ({"scope": ["a", 3]}, "file.yaml: scope.1: got 3; input should be a valid string."),
    ],
)
def test_the_alternatives_of_a_union_are_no_part_of_the_path(data, words):
    with pytest.raises(RecipeError) as caught:
        validate(Several, data, "file.yaml", RecipeError)
    assert str(caught.value).startswith(words) and "constrained" not in str(caught.value)
