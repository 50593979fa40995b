"""What metrics of other libraries need: the packages that hold all of it, weights found or not, draws seeded."""
