"""Who is told where an adapter is."""

from hypothesis import given
from hypothesis import strategies as st

from adamix_server.engine.residency.claims import Claims

_STEPS = st.lists(st.tuples(st.sampled_from(["note", "drop"]), st.sampled_from("abc"), st.sampled_from("xyz")))


@given(_STEPS)
def test_a_tenant_knows_of_what_it_has_asked_for_since_it_gave_it_up(steps: list[tuple[str, str, str]]) -> None:
    claims, known = Claims(lambda digest: False), set[tuple[str, str]]()
    for step, digest, tenant in steps:
        if step == "note":
            claims.note(digest, tenant)
            known.add((digest, tenant))
        else:
            claims.drop(digest, tenant)
            known.discard((digest, tenant))
        assert {(d, t) for d in "abc" for t in "xyz" if claims.has(d, t)} == known


def test_what_is_far_away_is_forgotten_in_time() -> None:
    near = {f"near-{number}" for number in range(2_000)}
    claims = Claims(lambda digest: digest not in near)
    for digest in sorted(near):
        claims.note(digest, "one")
    for number in range(100_000):
        claims.note(f"far-{number}", "one")
        assert len(claims) <= 2 * len(near) + 1
    assert all(claims.has(digest, "one") for digest in near)
