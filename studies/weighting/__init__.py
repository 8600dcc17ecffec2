"""Example-weighting schemes and training systems, one file each, all behind one small interface."""
