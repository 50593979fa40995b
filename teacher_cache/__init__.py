"""Stage one: the teachers, and the only writer of a cache."""
