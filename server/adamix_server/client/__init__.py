"""The name that `adamix_client` had before it was a distribution of its own; gone in the version after this one."""

import adamix_client
from adamix_client import *  # noqa: F403

__all__ = adamix_client.__all__
