"""The modules a backbone gets: bottlenecks, LoRAs, mixtures of them, heads; and what they are trained by."""
