"""Who calls: keys, tokens and certificates, each judged by itself, and put together for the gate."""
