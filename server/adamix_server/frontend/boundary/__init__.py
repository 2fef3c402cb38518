"""Where a call comes in and its end goes out: identity of the call, admission, every failure as a status."""
