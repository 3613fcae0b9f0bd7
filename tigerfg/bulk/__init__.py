"""Encoding catalogues of millions of items: parquet in, parquet of vectors out."""
