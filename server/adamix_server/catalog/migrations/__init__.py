"""The steps from each schema of the catalog to the next, as alembic scripts: `rNNNN_*.py`.

`NNNN` is the schema that a step leads to, and the number that `PRAGMA user_version` has afterwards. A step says what it
does in full and imports nothing of the catalog: it must do tomorrow what it does today. `upgrade.py` runs them.

To change a table that is there, `op.batch_alter_table` makes it anew and copies its rows. It does not see that a table
never gives an id twice: say `table_kwargs={"sqlite_autoincrement": True}` for those of `schema.py` that do not, and put
their numbers in `sqlite_sequence` back.
"""
