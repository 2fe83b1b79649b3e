"""What is sealed with which key version, found in the application's own tables."""
