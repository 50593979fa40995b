"""Stage two: the network, its loss and training, and everything that uses a trained student."""
