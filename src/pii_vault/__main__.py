"""`python -m pii_vault` is the `pii-vault` command."""

from pii_vault.cli import main

if __name__ == "__main__":
    main()
