"""Open loops: rates as asked for, whoever else calls."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from adamix_bench.tenants import scenarios
from adamix_bench.tenants.measured import members_of, rates_of
from adamix_bench.tenants.settings import FULL
from adamix_bench.tenants.traffic import Caller, draw_calls, draw_templates, tokens_of

CALLER = Caller(tenant="a", knees=0.5, inputs_per_call=8, tasks=3, deadlines_s=(1.0, 5.0), retries=0.5)


def offered(caller: Caller, seconds: float, seed: int = 0) -> float:
    """Knees that are asked for."""
    templates = draw_templates(caller, seed)
    calls = draw_calls([caller], seconds, 1000.0, seed)
    return sum(tokens_of(templates[call.template]) for call in calls) / seconds / 1000.0


@pytest.mark.parametrize(("cv", "off"), [(0.0, 0.02), (1.0, 0.1), (4.0, 0.35)])
def test_a_caller_asks_for_the_tokens_it_says(cv: float, off: float) -> None:
    found = [offered(replace(CALLER, cv=cv), 300.0, seed) for seed in range(3)]
    assert float(np.mean(found)) == pytest.approx(0.5, rel=off)


def test_a_tenant_makes_the_same_calls_alone_and_beside_others() -> None:
    alone = draw_calls([CALLER], 20.0, 1000.0, 7)
    other = Caller(tenant="b", knees=3.0)
    beside = draw_calls([other, CALLER], 20.0, 1000.0, 7)
    assert [replace(call, caller=0) for call in beside if call.caller == 1] == alone
    assert all(first.due_s <= second.due_s for first, second in itertools.pairwise(beside))


def test_deadlines_and_retries_are_as_chance_has_it_and_calls_in_between() -> None:
    calls = draw_calls([replace(CALLER, begin_s=5.0, end_s=60.0)], 100.0, 4000.0, 0)
    assert min(call.due_s for call in calls) >= 5.0
    assert max(call.due_s for call in calls) < 60.0
    assert {call.deadline_s for call in calls} == {1.0, 5.0}
    assert sum(call.retries for call in calls) == pytest.approx(len(calls) / 2, rel=0.2)


def test_every_tenant_of_a_scenario_has_its_tasks() -> None:
    floods = scenarios.floods(1.0, 500)
    assert scenarios.every_caller(floods) == {
        ("victim", "victim"): 4,
        ("flood", "flood"): 500,
        ("flood", "victim"): 1,
    }


def test_a_server_has_every_tenant_that_calls_with_its_weight_class_and_tasks() -> None:
    members = members_of(FULL)
    assert members["flood"].tasks == {"flood": 1000, "victim": 1, "one": 1}
    assert members["double"].shares.weight == 2
    assert members["nightly"].shares.service_class == "batch"
    assert members["metered"].quotas.input_tokens_per_s
    for scenario in (*scenarios.floods(1.0, 1000), scenarios.overload(1.0, 5.0, 1.0, tenants=scenarios.SEVERAL)):
        for caller in scenario.callers:
            assert members[caller.tenant].tasks[caller.owner] >= caller.tasks


def test_the_rates_of_a_machine_make_up_its_knee() -> None:
    rates = rates_of([(20, 0.007), (40, 0.009), (1000, 0.105)], knee=5000.0)
    assert rates is not None
    assert 1024 / (rates["batch_s"] + 1024 * rates["token_s"]) == pytest.approx(5000.0)
    assert rates["batch_s"] / rates["token_s"] == pytest.approx(0.005 / 0.0001)
    assert rates_of([(1000, 0.1)], knee=5000.0) is None
