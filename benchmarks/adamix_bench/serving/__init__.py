"""`adamix bench serving`: throughput and latency of mixed adapters, and what they are compared with."""
