"""The parts of `soak.py`: what torments, what works, what writes down, and what judges."""
