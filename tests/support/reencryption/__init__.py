"""An application under load whose values are sealed anew meanwhile, and a log of who has written what."""
