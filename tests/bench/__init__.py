"""Measurements: ratios against what the machine itself does, taken in one run. `python -m tests.bench` runs them."""
