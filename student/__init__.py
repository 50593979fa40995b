"""Stage two: the method (stream, loss, schedule), the network, its training, and what uses a trained student."""
