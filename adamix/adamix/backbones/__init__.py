"""Pretrained transformers: loading and naming them, those that come in packages, and their sites."""
