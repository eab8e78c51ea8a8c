"""Hybrid search and ingest on a real Elasticsearch: our service, its bare client, LangChain, Haystack. `python -m benchmarks.elastic`."""
