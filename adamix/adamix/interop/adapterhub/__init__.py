"""Adapters and heads of AdapterHub."""
