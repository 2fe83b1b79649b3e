"""Onboarding a customer: what it is asked to set up in its AWS account, proof that it did, and its registration."""
