"""What `finalize` writes beside the manifest."""

import hashlib

from cache_support import NoisyBicubic, make_corpus, settings

from pipeline import shards
from teacher_cache.building.build import build_cache
from teacher_cache.building.manifest import finalize


def test_the_index_is_the_manifests_and_written_again_where_it_was_lost(tmp_path):
    cache = tmp_path / "cache"
    build_cache(str(make_corpus(tmp_path / "corpus")), cache, NoisyBicubic(), settings(samples=2))
    index, data = cache / "manifest.index", (cache / "manifest.json").read_bytes()
    expected = shards.index_bytes(shards.load_manifest(cache), hashlib.sha256(data).hexdigest())
    assert index.read_bytes() == expected
    for harm in (index.unlink, lambda: index.write_bytes(expected[:-1])):
        harm()
        finalize(cache)
        assert index.read_bytes() == expected
