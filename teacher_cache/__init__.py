"""Stage one: run a teacher once over a corpus, and the only writer of a cache."""
