"""What a tenant's keys and grants may be, and how many there are of them."""

from adamix.errors import Code
from adamix_server.limits.table import Chapter

chapter = Chapter()

MAX_KEYS_PER_TENANT = chapter.limit(
    1_000,
    "",
    "keys of a tenant, those revoked or expired included",
    Code.RESOURCE_EXHAUSTED,
    "TOO_MANY_KEYS",
    note="the one that has ended first and stood for no certificate is forgotten, if there is one; without RetryInfo",
    proof="server/catalog/test_keys.py::test_so_many_keys_a_tenant_has",
)
MAX_GRANTS_PER_TENANT = chapter.limit(
    10_000,
    "",
    "grants of a tenant's tasks",
    Code.RESOURCE_EXHAUSTED,
    "TOO_MANY_GRANTS",
    note="without RetryInfo",
    proof="server/catalog/test_grants.py::test_so_many_grants_a_tenant_has",
)
MAX_KEY_NETWORKS = chapter.limit(
    16,
    "",
    "networks of a key",
    Code.INVALID_ARGUMENT,
    "NETWORK_INVALID",
    proof="server/catalog/test_keys.py::test_networks_of_a_key",
)
MAX_TASK_PATTERN_CHARS = chapter.limit(
    128,
    "",
    "task pattern of a key",
    Code.INVALID_ARGUMENT,
    "TASK_PATTERN_INVALID",
    more=" characters",
    proof="server/catalog/test_keys.py::test_a_task_pattern",
)
MAX_DISPLAY_NAME_CHARS = chapter.limit(
    128,
    "",
    "display name of a key",
    Code.INVALID_ARGUMENT,
    "DISPLAY_NAME_INVALID",
    more=" characters",
    proof="server/catalog/test_keys.py::test_a_display_name",
)
MAX_CERTIFICATE_NAME_CHARS = chapter.limit(
    1_024,
    "",
    "name of a certificate that stands for a key",
    Code.INVALID_ARGUMENT,
    "CERTIFICATE_NAME_INVALID",
    more=" characters",
    proof="server/catalog/test_keys.py::test_a_certificate_name",
)
