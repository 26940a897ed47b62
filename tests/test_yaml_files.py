import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune import yaml_files
from edgeprune.errors import RecipeError, TargetError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2:4", "2:4"),  # YAML 1.1 reads 124, in base 60
        ("1e-3", 0.001),  # YAML 1.1 reads a string
        ("1E5", 1e5),
        (".5", 0.5),
        ("-0.5", -0.5),
        ("+3", 3),
        ("0", 0),
        ("010", "010"),  # YAML 1.1 reads 8
        ("1_000", "1_000"),  # YAML 1.1 reads 1000
        ("0x10", "0x10"),
        ("no", "no"),  # YAML 1.1 reads False
        ("on", "on"),
        ("True", True),
        ("false", False),
        ("~", None),
        ("null", None),
        ("2024-01-01", "2024-01-01"),  # YAML 1.1 reads a date
        (".inf", math.inf),
        ("1.2.3", "1.2.3"),
        ("[1, 4]", [1, 4]),
        ("{a: 1}", {"a": 1}),
        ("", None),
    ],
)
def test_scalars_mean_what_they_say(text, value):
    read = yaml_files.scalar(text)
    assert read == value
    assert type(read) is type(value)


def test_nan_is_a_float():
    assert math.isnan(yaml_files.scalar(".nan"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", r"recipe\.yaml, line 2, column 1: this is not valid YAML: the key 'a' stands twice"),
        ("stages:\n  prune:\n    final: 1\n    final: 2\n", "line 4, column 5.* the key 'final' stands twice"),
        ("a: [1,\n", "line 2, column 1"),
        ("? [1, 2]\n: 3\n", "a key must be a word"),
        ("a: !!python/object/apply:os.system [true]\n", "could not determine a constructor"),
        ("a: b: c\n", "line 1, column 5"),
        ("a: 1\n--- \nb: 2\n", "not valid YAML"),
        ("a: \x07\n", "not valid YAML"),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_place(text, message):
    with pytest.raises(RecipeError, match=message):
        yaml_files.parse(text, "recipe.yaml")


def test_a_merge_key_is_no_repetition():
    assert yaml_files.parse("base: &b {a: 1, c: 2}\nmore:\n  <<: *b\n  a: 3\n", "x")["more"] == {"a": 3, "c": 2}


def test_read_names_the_file(tmp_path):
    with pytest.raises(TargetError, match=r"absent\.yaml cannot be read"):
        yaml_files.read(tmp_path / "absent.yaml", TargetError)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"binary\.yaml cannot be read as text"):
        yaml_files.read(binary)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["C"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "no", "1", "2:4", "x y"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(PLAIN)
def test_what_is_dumped_is_read_back_unchanged(data):
    assert yaml_files.parse(yaml_files.dump(data), "x") == data


def test_dump_keeps_the_order():
    assert list(yaml_files.parse(yaml_files.dump({"b": 1, "a": 2}), "x")) == ["b", "a"]
