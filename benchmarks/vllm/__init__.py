"""The generator over a real vLLM, against callers who go straight to it."""
