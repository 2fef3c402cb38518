"""What lies on disk: the adapter file, the mixture file, their manifest, and the bytes they are made of.

Standard library, numpy and msgspec only: server processes that must not load torch import from here.
"""
