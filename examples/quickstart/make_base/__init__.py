"""Makes the quickstart's base model from nothing: invented facts, a tokenizer, a curriculum, a reading test.

`python -m examples.quickstart.make_base` runs all of it; see `examples/quickstart/README.md` for what came out.
"""
