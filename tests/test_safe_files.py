"""What is written is there whole or not at all, and what was there before is not lost."""

import errno
import os
import stat

import pytest
from safetensors import SafetensorError

from walrus_hf.safe_files import whole_file, whole_folder, write_text


def full_disk():
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_appears_when_it_is_complete_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with whole_file(path, ".gif") as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".gif")
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("writes", [whole_file, whole_folder])
@pytest.mark.parametrize("there", [True, False])
def test_after_an_error_the_old_one_is_there_and_no_part_of_the_new(writes, there, tmp_path):
    path = tmp_path / "a"
    if there and writes is whole_file:
        path.write_text("old")
    elif there:
        path.mkdir()
        (path / "b").write_text("old")

    def write_half():
        with writes(path) as temporary:
            (temporary if writes is whole_file else temporary / "b").write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert os.listdir(tmp_path) == ["a"] * there
    if there:
        assert (path if writes is whole_file else path / "b").read_text() == "old"


@pytest.mark.parametrize(("writes", "what"), [(whole_file, "file"), (whole_folder, "folder")])
def test_errors_of_the_disk_name_what_was_to_be_written_and_the_remedy(writes, what, tmp_path):
    message = f"a: expected to write the {what}, found No space left on device; free"
    with pytest.raises(OSError, match=message) as error, writes(tmp_path / "a"):
        raise full_disk()
    assert error.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_a_file_whose_folder_is_missing_is_an_error_that_names_it(tmp_path):
    message = "a: expected to write the file, found No such file"
    with pytest.raises(OSError, match=message), whole_file(tmp_path / "missing" / "a") as temporary:
        temporary.write_text("x")


def test_a_folder_is_replaced_as_a_whole_and_others_may_read_it(tmp_path):
    path = tmp_path / "made" / "a"
    for name in ("first", "second"):
        with whole_folder(path) as temporary:
            (temporary / name).write_text(name)
        assert os.listdir(path) == [name]
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert os.listdir(path.parent) == ["a"]


def test_an_old_folder_comes_back_where_the_new_one_cannot_be_moved(tmp_path, monkeypatch):
    path, replace = tmp_path / "a", os.replace
    path.mkdir()
    (path / "b").write_text("old")

    def refuse(source, target):
        if target == path and not (source / "b").exists():
            raise full_disk()
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="expected to write the folder"), whole_folder(path) as temporary:
        (temporary / "c").write_text("new")
    assert os.listdir(tmp_path) == ["a"]
    assert (path / "b").read_text() == "old"


def test_the_first_error_is_told_even_where_nothing_can_be_cleaned_up(tmp_path):
    (tmp_path / "file").write_text("no folder")
    message = "a: expected to write the file, found Not a directory"
    with pytest.raises(OSError, match=message), whole_file(tmp_path / "file" / "a") as temporary:
        temporary.write_text("x")
    with pytest.raises(OSError, match="a: expected to write the folder, found"), whole_folder(tmp_path / "file" / "a"):
        pass


def test_an_error_of_another_file_names_that_one_too(tmp_path):
    other = tmp_path.parent / "cache-that-is-missing" / "b"
    message = r"a: expected to write the file, found No such .*cache-that-is-missing/b"
    with pytest.raises(OSError, match=message), whole_file(tmp_path / "a"):
        other.read_text()


def test_an_error_of_safetensors_is_one_of_the_folder(tmp_path):
    with pytest.raises(OSError, match="a: expected to write the folder, found No space"), whole_folder(tmp_path / "a"):
        raise SafetensorError("No space left on device (os error 28)")


def test_a_text_is_a_whole_file(tmp_path):
    write_text(tmp_path / "a", "größer\n")
    assert (tmp_path / "a").read_bytes() == "größer\n".encode()
    with pytest.raises(OSError, match="a: expected to write the file, found No such file"):
        write_text(tmp_path / "missing" / "a", "x")
