"""Other ways to write the same texts, each as its own users would run it."""
