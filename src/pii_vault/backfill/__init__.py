"""Fill a column from another one of the same table: sealed values from plaintext, plaintext from sealed values."""
