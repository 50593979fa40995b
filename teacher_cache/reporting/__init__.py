"""What people are told of a cache: how it stands, what it costs, and how its pictures will look."""
