import doctest

import pytest

from edgeprune import catalogue, registry


@pytest.mark.parametrize("family", registry.families())
def test_every_member_says_in_one_line_what_it_is_for(family):
    described = catalogue.describe(family)
    assert list(described) == registry.names(family)
    for name, sentence in described.items():
        assert sentence, f"{family}: {name} says nothing"
        assert "\n" not in sentence and "`" not in sentence


def test_everything_has_every_family():
    assert catalogue.everything().keys() == set(registry.families())


def test_docstrings():
    assert doctest.testmod(catalogue).failed == 0
