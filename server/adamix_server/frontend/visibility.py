"""Which tasks a caller may name: one answer for what is not there, what is another's, and what it was not given.

A name that is not the caller's to say becomes one that no task has, before anybody looks. So what exists behind it
changes neither the words nor the time of the answer. Knows neither the wire nor the catalog.
"""

from collections.abc import Set

from adamix_server.access.principal import Principal

# (tenant, task) as no task is called. Whoever looks for it finds nothing.
NO_TASK = ("", "")


def visible(
    name: tuple[str, str], principal: Principal, lent: Set[tuple[str, str, str]] = frozenset()
) -> tuple[str, str]:
    """`name` (tenant, task), if it is the caller's to say, else `NO_TASK`.

    Args:
        lent: (owner, task, tenant) of the tasks that may be asked for answers by another tenant than their own; empty
            for all that is more than an answer.
    """
    owner, task = name
    # Each is asked, whatever the others say.
    was_given = principal.may_name(task)
    is_its = principal.is_admin or owner == principal.tenant or (owner, task, principal.tenant) in lent
    return name if is_its and was_given else NO_TASK
