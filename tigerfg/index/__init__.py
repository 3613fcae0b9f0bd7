"""The catalogue's store (SQLite, the truth) and the vector index derived from it."""
