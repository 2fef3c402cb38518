"""Where adapters are, from store to device: who is read, who sits in which slot, who is evicted.

Loads nothing by itself: `slots` is used and tested without torch.
"""
