"""`adamix demo`: the product's whole life on real weights and real text, in a few minutes on two cores."""
