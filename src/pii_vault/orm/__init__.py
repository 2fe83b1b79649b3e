"""SQLAlchemy: column types that seal and open, and hooks on engines and sessions. Knows the scope, no vault."""
