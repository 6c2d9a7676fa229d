"""`diagnose`: what keeps a network from learning, in words, with the measured figures and a measured remedy."""
