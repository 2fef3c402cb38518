"""What quotas of a tenant's flow are counted by: rates, and what runs at once."""

from adamix.errors import Code
from adamix_server.limits.table import Chapter

chapter = Chapter()

chapter.said(
    "a tenant's `input_tokens_per_s` and `generated_tokens_per_s`, of which it may take `burst_s` at once (1 s if that "
    "is not set), and its `registrations_per_minute`, of which it may take a minute's at once",
    "its quotas, none unless set",
    Code.RESOURCE_EXHAUSTED,
    "QUOTA_<NAME>",
    note="RetryInfo: when the next call is admitted, exactly or up to a fifth later; none where the quota is 0. A call "
    "is admitted while anything is left, and what it takes beyond that is a debt",
    proof="server/access/test_buckets.py::test_it_is_open_while_anything_is_left_and_a_debt_closes_it_for_so_long",
)
chapter.said(
    "a tenant's `concurrent_calls`, `concurrent_streams` (`PredictStream`, `Generate`, `WatchTasks`, for their whole "
    "life) and `concurrent_uploads`, over all front ends; a call counts as one of them, and those of operators and "
    "probes as none",
    "its quotas, none unless set",
    Code.RESOURCE_EXHAUSTED,
    "QUOTA_<NAME>",
    note="RetryInfo, unless the quota is 0",
    proof="server/access/test_leases.py::test_a_limit_of_one_lets_one_at_a_time_over_all_front_ends",
)
LEASE_S = chapter.limit(
    0.1,
    "s",
    "of a rate that one of F front ends may hold unspent; as long without use, it gives back what it holds",
    None,
    note="the others lack it meanwhile",
    proof="server/access/test_leases.py::test_a_front_end_holds_a_tenth_of_a_second_and_gives_it_back_when_it_is_idle",
)
LENDER_SILENCE_S = chapter.limit(
    0.5,
    "s",
    "a supervisor that does not answer a front end which needs more of a quota",
    None,
    note="until it answers again, each of F front ends goes on with a fixed 1/F of the quota, for as long as that "
    "lasts; with what was lent before, at most twice as many calls at once",
    proof="server/access/test_leases.py::test_without_an_answer_each_front_end_goes_on_with_its_part",
)
SLOT_WAIT_S = chapter.limit(
    0.25,
    "s",
    "other front ends that hold slots of a tenant's quota, and are asked for one that they do not use",
    None,
    note="one that says nothing for so long is taken to use all of them",
    proof="server/access/test_leases.py::test_who_holds_slots_and_says_nothing_is_waited_for_so_long",
)
# So long a refusal of a slot is remembered, and nobody is asked.
FULL_S = 0.02
