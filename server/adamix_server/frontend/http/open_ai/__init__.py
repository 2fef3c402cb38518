"""OpenAI's routes, and vLLM's `/classify`: the same calls as over gRPC, in the words of those who know these."""
