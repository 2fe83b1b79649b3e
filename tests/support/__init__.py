"""What the tests share: a real PostgreSQL, and URLs for every driver."""
