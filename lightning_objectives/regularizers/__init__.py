"""signals -> (N,) or a scalar: added terms."""
