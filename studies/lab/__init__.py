"""What the studies share: data, corruptions, models and the training loop."""
