"""Rows of a file, asked about one after another and written back with what was answered; gone on with after a kill."""
