"""Plan tables: every launch there can be has a plan on every architecture, and a malformed table says what is wrong."""

import copy
import itertools
import json
from importlib.resources import files

import pytest

from adamix_kernels import plans
from adamix_kernels.gpu.launch import numbers, plan_of
from adamix_kernels.plans import ARCHITECTURES, DTYPES, KERNELS, RANK_CLASSES, Facts, Plan, Rule

FEATURES = (8, 24, 64, 384, 768, 1024, 2048, 4096, 8192)
ROWS = (1, 8, 31, 128, 1024, 8192, 65536)


def shipped(architecture: str) -> dict:
    return json.loads((files("adamix_kernels") / "plans" / f"{architecture}.json").read_text("utf-8"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_launch_has_a_plan(architecture):
    pick = plans.pick.__wrapped__
    for dtype, rank, features, rows in itertools.product(DTYPES, RANK_CLASSES, FEATURES, ROWS):
        for segments in {1, min(rows, 7), rows}:
            facts = Facts(dtype, rank, features, rows, segments)
            for op, kernels in KERNELS.items():
                assert pick(op, architecture, facts).kernel in kernels
            # A norm point has one kernel only.
            assert pick("low_rank", architecture, facts, "fused").kernel == "fused"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shipped_plans_are_what_kernels_can_run(architecture):
    for rules in plans.table(architecture).values():
        for rule in rules:
            plan = rule.plan
            if plan.kernel != "fused":
                assert plan.block_n >= 16, rule.name
            # Programmatic dependent launch came with sm90, and it is between the two launches of `split`.
            assert not plan.pdl or (plan.kernel == "split" and architecture in ("sm90", "sm100")), rule.name
            assert plan_of(numbers(plan)) == plan


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_rule_is_hidden_behind_one_without_limits(architecture):
    for rules in plans.table(architecture).values():
        taken: dict[str, set[str]] = {}
        for rule in rules:
            open_to = taken.setdefault(rule.plan.kernel, set())
            assert not set(rule.dtypes) <= open_to, rule.name
            if not rule.limits:
                open_to.update(rule.dtypes)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_table_survives_being_written_and_read(architecture):
    text = shipped(architecture)
    rules = plans.parse(text, architecture)
    assert plans.document(rules) == text
    assert plans.parse(json.loads(json.dumps(plans.document(rules))), architecture) == rules


def test_the_first_rule_that_holds_gives_the_plan():
    small = Rule("small", Plan("fused", 16, 16, 1, 1), ("fp32",), {"max_rows": 8, "min_rank": 32})
    assert small.holds(Facts("fp32", 32, 8, 8, 1))
    assert not small.holds(Facts("fp32", 32, 8, 9, 1))
    assert not small.holds(Facts("fp32", 16, 8, 8, 1))
    assert not small.holds(Facts("bf16", 32, 8, 8, 1))


def test_facts_that_follow_from_sizes():
    facts = Facts("bf16", 64, 768, 100, 7)
    assert (facts.rows_per_segment, facts.tiles, facts.matrix_bytes) == (15, 13, 64 * 768 * 2)
    assert Facts("fp32", 64, 768, 0, 0).rows_per_segment == 0
    assert Facts("fp32", 64, 768, 3, 9).tiles == 3


@pytest.mark.parametrize(("rank", "size"), [(1, 16), (16, 16), (17, 32), (64, 64), (65, 128), (129, 256), (256, 256)])
def test_a_rank_fits_in_the_least_class_above_it(rank, size):
    assert plans.rank_class(rank) == size


def test_a_rank_above_the_last_class_is_refused():
    with pytest.raises(ValueError, match="rank 257 is above 256"):
        plans.rank_class(257)


def test_an_architecture_without_a_table_is_refused():
    with pytest.raises(ValueError, match=r"no plans for '\.\./sm90'; there are plans for sm80"):
        plans.table("../sm90")


def test_where_no_rule_holds_the_facts_are_named():
    with pytest.raises(ValueError, match=r"no plan of low_rank on sm90 for Facts\(dtype='int8'"):
        plans.pick("low_rank", "sm90", Facts("int8", 16, 8, 1, 1))


def first_rule(document):
    return document["low_rank"][0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d.pop("low_rank"), "has rules for low_rank, weight_gradients; this one for weight_gradients"),
        (lambda d: d.update(low_rank=["fused"]), "must have name, dtypes and plan, .*: fused"),
        (lambda d: d.update(softmax=[]), "this one for low_rank, weight_gradients, softmax"),
        (lambda d: first_rule(d).pop("name"), "name"),
        (lambda d: first_rule(d).pop("plan"), "plan"),
        (lambda d: first_rule(d).update(dtypes=["int8"]), "unknown dtypes"),
        (lambda d: first_rule(d).update(dtypes=[]), "dtypes"),
        (lambda d: first_rule(d).update(limit={"max_rank": 16}), "limit"),
        (lambda d: first_rule(d).update(limits={"max_ranks": 16}), "'max_ranks'"),
        (lambda d: first_rule(d).update(limits={"below_rank": 16}), "'below_rank'"),
        (lambda d: first_rule(d).update(limits={"max_dtype": 16}), "'max_dtype'"),
        (lambda d: first_rule(d).update(limits={"max_rank": "16"}), "max_rank"),
        (lambda d: first_rule(d)["plan"].update(kernel="grouped"), "no kernel 'grouped'"),
        (lambda d: first_rule(d)["plan"].update(block_k=16), "block_k"),
        (lambda d: first_rule(d)["plan"].update(block_m=24), "powers of two"),
        (lambda d: first_rule(d)["plan"].update(block_m=8), "from 16 on"),
        (lambda d: first_rule(d)["plan"].update(block_m="16"), "block_m"),
        (lambda d: first_rule(d)["plan"].update(num_warps=3), "power of two"),
        (lambda d: first_rule(d)["plan"].update(num_stages=0), "at least 1"),
        (lambda d: first_rule(d)["plan"].update(splits=0), "at least 1"),
        (lambda d: first_rule(d)["plan"].update(kernel="split", block_n=0), "block_n"),
        (lambda d: first_rule(d).update(name=d["low_rank"][1]["name"]), "two rules of low_rank have one name"),
        (lambda d: d["low_rank"].clear(), "no rule without limits for bf16, fp16, fp32"),
        (lambda d: [each.update(limits={"max_rank": 16}) for each in d["low_rank"]], "no rule without limits"),
    ],
)  # fmt: skip
def test_a_malformed_table_is_refused_in_a_sentence(damage, message):
    document = copy.deepcopy(shipped("sm90"))
    damage(document)
    with pytest.raises(ValueError, match=message):
        plans.parse(document, "sm90")


def test_a_table_that_is_not_json_is_refused_by_name(tmp_path, monkeypatch):
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "sm90.json").write_text("{cut", encoding="utf-8")
    monkeypatch.setattr(plans, "files", lambda _: tmp_path)
    with pytest.raises(ValueError, match="sm90: the table is not JSON"):
        plans.table.__wrapped__("sm90")
