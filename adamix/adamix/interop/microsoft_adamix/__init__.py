"""What the code of the AdaMix release wrote."""
