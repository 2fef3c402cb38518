"""Does AdaMix do what its paper says? Trained, merged and measured on real text, against baselines of equal compute.

`settings.py` says what is compared, `trainings.py` what each method is, `store.py` keeps every result as a line that is
never lost, `tuning.py` chooses learning rates on validation rows, `run.py` goes through the cells; `statistics.py`,
`report.py` and `plots.py` turn lines into claims, tables and pictures.
"""
