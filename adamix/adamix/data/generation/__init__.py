"""Sources with reference texts: what each corpus and file holds, and the reading of them."""
