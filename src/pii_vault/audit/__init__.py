"""The audit log: what happened to each tenant's keys, by whom and why, so that nobody can change it afterwards."""
