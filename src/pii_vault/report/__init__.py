"""The report for a customer's security officer: facts about one tenant, what they mean, the page that shows them."""
