"""What a benchmark changes on a running server, as its operator does."""

from adamix_client import Client


def set_weight(address: str, operator_key: str, tenant: str, weight: int) -> None:
    """A tenant's weight from now on. Raises AdamixError."""
    with Client(address, api_key=operator_key) as client:
        client.update_tenant(tenant, weight=weight)


def revoke(address: str, operator_key: str, key_id: str) -> None:
    """Revoke a key; returns when no front end takes it any more. Raises AdamixError."""
    with Client(address, api_key=operator_key) as client:
        client.revoke_key(key_id)
