"""Making a cache, the only writer of shards: plan, crops, samples, commit, verification."""
