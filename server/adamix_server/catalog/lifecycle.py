"""The life of a version, in one drawing.

::

    VALIDATING ──> READY ──> RETIRED ──> DELETED
         └──────> FAILED

READY and RETIRED are rows. VALIDATING is held in memory only, FAILED leaves an entry of the audit, DELETED nothing.
RETIRED means: no new request finds it, requests in flight may still hold it, its bytes stay until the engine has let
go. Nothing leads back from RETIRED: the same bytes registered again are a new version with the same digest. Where the
weights are (device, host, store) is another matter, which this module does not know.
"""

from enum import StrEnum


class State(StrEnum):
    """State of one version, as its row has it."""

    READY = "READY"
    RETIRED = "RETIRED"
