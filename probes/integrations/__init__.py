"""Thin adapters to the loops of Lightning, transformers and Accelerate; `probes` imports none."""
