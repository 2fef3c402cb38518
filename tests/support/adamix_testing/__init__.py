"""What tests of several folders share and can name: makers of small things, and parts that are played.

Only tests import it, and it is in no wheel. Each module loads what its subject needs: the makers of manifests load no
torch, those of kernel batches no transformers.
"""
