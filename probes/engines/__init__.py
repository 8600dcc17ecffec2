"""Ways to get per-sample gradient norms out of a backward pass, one file each."""
