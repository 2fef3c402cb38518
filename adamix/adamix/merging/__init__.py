"""The ways to make one adapter of a mixture: `rules` of arithmetic, and what some of them first learn from text.

`rules` and `settings` need numpy alone. `greedy`, `learned`, `fisher` and `regmean` run a backbone.
"""
