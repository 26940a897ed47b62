import inspect

import pytest

from edgeprune import registry, schedules

MEMBERS = {
    "polynomial": schedules.polynomial(0.0, 0.8, 0.1, 0.9),
    "constant": schedules.constant(0.8, 0.1),
    "steps": schedules.steps(2, 4, 0.1, 0.9),
}


def test_polynomial_is_zhu_and_gupta():
    schedule = schedules.polynomial(initial=0.0, final=0.5, begin=0.0, end=1.0)
    assert schedule(0.0) == 0.0
    assert schedule(0.5) == pytest.approx(0.4375)  # 0.5 - 0.5 * (1 / 2) ** 3
    assert schedule(1.0) == 0.5


def test_polynomial_waits_rises_and_stays():
    schedule = schedules.polynomial(initial=0.2, final=0.6, begin=0.25, end=0.75, power=1.0)
    assert schedule(0.24) == 0.0
    assert schedule(0.25) == pytest.approx(0.2)
    assert schedule(0.5) == pytest.approx(0.4)
    assert schedule(0.75) == schedule(1.0) == 0.6


def test_constant_begins_at_once():
    schedule = schedules.constant(0.5, begin=0.3)
    assert (schedule(0.29), schedule(0.3), schedule(1.0)) == (0.0, 0.5, 0.5)


def test_steps_lays_one_zero_per_block_at_a_time():
    schedule = schedules.steps(final_zeros=2, of=4, begin=0.0, end=0.5)
    assert [schedule(p) for p in (0.0, 0.24, 0.25, 0.5, 1.0)] == [0.25, 0.25, 0.5, 0.5, 0.5]


def test_steps_may_go_to_one_kept_of_four():
    schedule = schedules.steps(final_zeros=3, of=4, begin=0.1, end=0.7)
    assert [schedule(p) for p in (0.0, 0.1, 0.31, 0.51, 0.9)] == [0.0, 0.25, 0.5, 0.75, 0.75]


def test_every_schedule_has_its_contract_tested():
    assert MEMBERS.keys() == set(registry.names("schedules"))


@pytest.mark.parametrize("name", MEMBERS)
def test_every_schedule_rises_within_bounds_and_ends_at_its_last_value(name):
    values = [MEMBERS[name](step / 1000) for step in range(1001)]
    assert values == sorted(values)
    assert values[0] == 0.0
    assert 0.0 < values[-1] <= 1.0
    assert values[-1] == values[950]


@pytest.mark.parametrize("name", registry.names("schedules"))
def test_every_schedule_documents_its_arguments(name):
    function = registry.function("schedules", name)
    assert all(argument in inspect.getdoc(function) for argument in inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.polynomial(0.0, 1.2), r"final must be 0\.\.1, got 1\.2"),
        (lambda: schedules.polynomial(-0.1, 0.5), r"initial must be 0\.\.1, got -0\.1"),
        (lambda: schedules.polynomial(0.0, 0.5, begin=0.5, end=0.5), r"begin \(0\.5\) must be before end \(0\.5\)"),
        (lambda: schedules.polynomial(0.0, 0.5, end=1.5), r"end must be 0\.\.1, got 1\.5"),
        (lambda: schedules.polynomial(0.0, 0.5, power=0), "power must be > 0, got 0"),
        (lambda: schedules.polynomial(0.0, float("nan")), r"final must be 0\.\.1, got nan"),
        (lambda: schedules.constant(2.0), r"final must be 0\.\.1, got 2\.0"),
        (lambda: schedules.constant(0.5, begin=-1), r"begin must be 0\.\.1, got -1"),
        (lambda: schedules.steps(0, 4), r"final_zeros must be 1\.\.4, got 0"),
        (lambda: schedules.steps(5, 4), r"final_zeros must be 1\.\.4, got 5"),
        (lambda: schedules.steps(2, 4, 0.9, 0.1), "must be before end"),
    ],
)
def test_a_bad_argument_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
