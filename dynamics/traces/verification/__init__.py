"""Proving that a trace is what was recorded, or naming what is not."""
