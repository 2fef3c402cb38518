"""Server-sent events, as browsers' EventSource reads them. Pure."""

CONTENT_TYPE = "text/event-stream"
# Of an answer that no cache or proxy is to keep.
HEADERS = (("cache-control", "no-store"), ("x-accel-buffering", "no"))


def event(data: bytes, name: str = "", number: int | None = None) -> bytes:
    """One event. `data` is one line, as JSON is that was encoded without spaces."""
    head = b"" if number is None else b"id: %d\n" % number
    if name:
        head += b"event: %s\n" % name.encode("ascii")
    return b"%sdata: %s\n\n" % (head, data)
