"""What may wait to be written down: entries of the audit, and what tenants have used."""

from adamix_server.limits.table import Chapter

chapter = Chapter()

MAX_AUDIT_BURST = chapter.limit(
    30,
    "",
    "entries of the audit in a row, of one caller or of all unknown ones, for calls that changed nothing",
    None,
    more=", then one in 2 s",
    note='the others are counted, and told every 10 s as one entry ("and 1,234 more")',
    proof="server/frontend/boundary/test_witness.py::test_so_many_in_a_row_have_an_entry_each",
)
MAX_AUDIT_BURST_OF_TENANT = chapter.limit(
    10 * MAX_AUDIT_BURST,
    "",
    "the same, of all callers of one tenant, which may have any number of keys",
    None,
    more=", then 5 a second",
    note="the others are counted, as above",
    proof="server/frontend/boundary/test_witness.py::test_so_many_in_a_row_have_all_callers_of_a_tenant",
)
MAX_WAITING_ENTRIES = chapter.limit(
    1_000,
    "",
    "entries of the audit that wait in one front end",
    None,
    note="the others are counted, as above",
    proof="server/frontend/boundary/test_witness.py::test_so_many_entries_wait",
)
MAX_UNWRITTEN_ENTRIES = chapter.limit(
    10_000,
    "",
    "entries of the audit that wait for a catalog that cannot be written",
    None,
    note="the newest are left out: one entry says how many",
    proof="server/supervisor/test_journal.py::test_so_many_entries_wait_for_the_catalog",
)
MAX_COUNTED_TENANTS = chapter.limit(
    10_000,
    "",
    "tenants whose use is counted in one front end within a second",
    None,
    note="of the others nothing is counted in that second",
    proof="server/frontend/test_usage.py::test_so_many_tenants_are_counted",
)
