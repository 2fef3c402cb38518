"""Other ways to answer the same requests, each as its own users would run it."""
