"""What the tests of stage one begin from: a corpus, a finished cache of it, and a copy of that to damage."""

import shutil

import fsspec
import pytest
from cache_support import NoisyBicubic, make_corpus, settings

from teacher_cache.building.build import build_cache


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus") / "photos")


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """The cache that one process makes: four training shards and one of held-out crops."""
    cache = tmp_path_factory.mktemp("finished") / "cache"
    assert build_cache(str(corpus), cache, NoisyBicubic(), settings()).complete
    return cache


@pytest.fixture
def store():
    """fsspec's store in memory, empty."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()


@pytest.fixture
def cache(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "cache")
