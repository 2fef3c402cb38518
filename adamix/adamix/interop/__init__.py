"""Adapters of other libraries in, ours out: PEFT, AdapterHub, and the files that the AdaMix release wrote.

Nothing here needs those libraries: each module knows how one of them lays out its files, and what it computes with
them. Weights are copied, never approximated; what our format cannot say exactly is refused by name, with the reason.
Every tensor of a source has to be accounted for.

Import from the modules (`adamix.interop.peft.weights`, …): this package loads nothing by itself.
"""
