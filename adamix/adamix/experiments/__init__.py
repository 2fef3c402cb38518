"""The protocols around a training: recipes, few-shot runs, sweeps, GLUE's table, gates and the release of a result."""
