"""What the port says of itself: the OpenAPI document, and a page that shows it without a word to any other server."""
