"""The doctor: proves what a customer's KMS must allow and must deny, and looks at our own side."""
