"""Where a cache is: a folder, or a URL of an object store; and whole shards of the latter in a local folder."""
