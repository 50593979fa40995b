import os

import pytest

from pipeline.system.errors import DtkdError, UsageError
from pipeline.system.outputs import check_file, check_folder, check_suffix


def ours(path):
    return (path / "mark" if path.is_dir() else path).read_text() == "ours"


def test_a_suffix_counts_in_any_case(tmp_path):
    check_suffix(tmp_path / "A.HTML", [".html"], "a page")
    with pytest.raises(UsageError, match=r"a\.png is no name for a page: expected \.html, got \.png"):
        check_suffix(tmp_path / "a.png", [".html"], "a page")
    with pytest.raises(UsageError, match="got none"):
        check_suffix(tmp_path / "a", [".html"], "a page")


def test_a_file_of_ours_is_replaced_when_asked(tmp_path):
    check_file(tmp_path / "a", "a page", False, ours)
    (tmp_path / "a").write_text("ours")
    check_file(tmp_path / "a", "a page", True, ours)
    with pytest.raises(DtkdError, match="a exists: pass --overwrite"):
        check_file(tmp_path / "a", "a page", False, ours)


def test_what_is_not_ours_is_never_replaced(tmp_path):
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, reason in (
        ("theirs", "is not a page of ours"),
        ("folder", "is a folder, and a page is one file"),
        ("pipe", "is no regular file"),
        ("link", "is no regular file"),
    ):
        with pytest.raises(DtkdError, match=reason):
            check_file(tmp_path / name, "a page", True, ours)


def test_a_folder_holds_our_results_or_nothing(tmp_path):
    check_folder(tmp_path / "new", "figures", False, ours)
    check_folder(tmp_path, "figures", False, ours)
    (tmp_path / ".git").mkdir()
    (tmp_path / "README.md").write_text("")
    check_folder(tmp_path, "figures", False, ours, keep=["README.md"])
    (tmp_path / "mark").write_text("theirs")
    with pytest.raises(DtkdError, match="holds mark and is not figures of ours"):
        check_folder(tmp_path, "figures", True, ours, keep=["README.md"])
    (tmp_path / "mark").write_text("ours")
    check_folder(tmp_path, "figures", True, ours)
    with pytest.raises(DtkdError, match="holds figures: pass --overwrite"):
        check_folder(tmp_path, "figures", False, ours)
    with pytest.raises(DtkdError, match="must be a folder, but a file is in the way"):
        check_folder(tmp_path / "mark", "figures", True, ours)
