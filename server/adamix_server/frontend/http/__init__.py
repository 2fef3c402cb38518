"""HTTP beside gRPC, in the same process and through the same boundary. Holds no truth of its own."""
