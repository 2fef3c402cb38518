"""adamix: train mixtures of adaptations on a frozen transformer and merge each into one small adapter file.

The package itself imports nothing: server processes that must not load torch import `adamix.errors`,
`adamix.files.manifest` and `adamix.files.adapter_file` (with its `tensors` and `disk`) alone.
"""
