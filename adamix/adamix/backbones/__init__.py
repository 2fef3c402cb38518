"""Pretrained transformers: loading and naming them, those that come in packages, and where adapters sit in each family."""
