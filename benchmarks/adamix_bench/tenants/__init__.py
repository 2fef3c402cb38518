"""Tenants beside each other: does anybody slow, starve or out-spend another? On a server, and on a made-up clock.

Both carry out the same scenarios (`scenarios.py`) and are judged by the same rows (`proof.py`).
"""
