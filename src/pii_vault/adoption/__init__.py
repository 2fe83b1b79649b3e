"""Adopt a plaintext column while the application works: a sealed one beside it is filled, verified, and takes over.

Each stage is deployed, and taken back, alone. Nothing here knows Alembic.
"""
