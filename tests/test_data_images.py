"""Image folders: layouts, decoding, the cache, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from edgeprune import data_images
from edgeprune.data_options import DataOptions
from edgeprune.errors import DataError

RED, GREEN = (255, 0, 0), (0, 255, 0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


def draw(path, colour, size=(3, 2), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def photos(tmp_path):
    """Two classes; images 3 wide and 2 high."""
    draw(tmp_path / "photos" / "leaf" / "b.png", GREEN)
    draw(tmp_path / "photos" / "leaf" / "deep" / "a.png", GREEN)
    draw(tmp_path / "photos" / "brick" / "a.png", RED)
    return tmp_path / "photos"


def read(folder, **options):
    return data_images.read(folder, DataOptions(**options))


def test_class_folders_in_the_order_of_their_names(photos):
    source = read(photos)
    x, y = source.parts["all"]
    assert source.labels == ("brick", "leaf")
    assert x.shape == (3, 2, 3, 3) and x.dtype == np.uint8
    assert [tuple(image[0, 0]) for image in x] == [RED, GREEN, GREEN]
    assert y.tolist() == [0, 1, 1]


def test_split_folders(tmp_path):
    for split in ("train", "validation", "test"):
        draw(tmp_path / split / "a" / "1.png", RED)
    draw(tmp_path / "train" / "b" / "1.png", GREEN)
    source = read(tmp_path)
    assert {name: y.tolist() for name, (_, y) in source.parts.items()} == {"train": [0, 1], "val": [0], "test": [0]}


def test_a_class_may_be_called_train(tmp_path):
    draw(tmp_path / "train" / "1.png", RED)
    draw(tmp_path / "ship" / "1.png", GREEN)
    assert read(tmp_path).labels == ("ship", "train")


def test_grey_and_resized(photos):
    x, _ = read(photos, image_size=(4, 5), channels=1).parts["all"]
    assert x.shape == (3, 4, 5, 1)
    assert x[1, 0, 0, 0] == 150  # ITU-R 601: 0.587 of the green


def test_other_files_are_left_out_and_told(photos):
    (photos / "leaf" / "notes.txt").write_text("x")
    (photos / "leaf" / ".hidden.png").write_text("x")
    assert read(photos).notes == ("1 files that are no images were left out, such as leaf/notes.txt",)


def test_images_are_decoded_once(photos, cache, monkeypatch):
    first = np.array(read(photos).parts["all"][0])
    monkeypatch.setattr(data_images, "_pixels", lambda *_: pytest.fail("decoded again"))
    again = read(photos).parts["all"][0]
    assert np.array_equal(again, first) and isinstance(again, np.memmap) and not again.flags.writeable
    assert len(list(cache.iterdir())) == 1


def test_a_changed_image_is_decoded_again(photos):
    read(photos)
    draw(photos / "brick" / "a.png", (0, 0, 9), size=(3, 2))
    assert tuple(read(photos).parts["all"][0][0, 0, 0]) == (0, 0, 9)


def test_a_damaged_cache_is_made_again(photos, cache):
    read(photos)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    assert read(photos).parts["all"][0].shape == (3, 2, 3, 3)


def test_progress_is_told(photos):
    class Told:
        steps: list[tuple[float, float, str]] = []  # noqa: RUF012

        def step(self, done, total, unit, **values):
            self.steps.append((done, total, unit))

    data_images.read(photos, DataOptions(), Told())
    assert Told.steps == [(3, 3, "images")]


def test_a_broken_image_is_named_and_leaves_nothing(photos, cache):
    (photos / "leaf" / "b.png").write_bytes((photos / "leaf" / "b.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"b\.png cannot be decoded"):
        read(photos)
    assert list(cache.iterdir()) == []


def test_a_file_that_is_no_image_is_named(tmp_path):
    draw(tmp_path / "b" / "1.png", RED)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_text("hello")
    with pytest.raises(DataError, match=r"1\.png cannot be decoded"):
        read(tmp_path)


def test_unequal_sizes_want_image_size(photos):
    draw(photos / "leaf" / "wide.png", GREEN, size=(9, 2))
    with pytest.raises(DataError, match=r"wide\.png is 2 x 9 pixels .* the first image 2 x 3\. Set data\.image_size"):
        read(photos)


def test_sixteen_bits_are_refused(photos):
    draw(photos / "leaf" / "deep.png", 70, mode="I;16")
    with pytest.raises(DataError, match=r"deep\.png has more than 8 bits"):
        read(photos)


def test_folders_that_are_no_classes(tmp_path):
    with pytest.raises(DataError, match="holds 0 class folders"):
        read(tmp_path)
    draw(tmp_path / "a" / "1.png", RED)
    with pytest.raises(DataError, match=r"holds 1 class folders \(a\)"):
        read(tmp_path)


def test_folders_without_images(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="holds no images"):
        read(tmp_path)


def test_split_folders_among_others_are_refused(tmp_path):
    for name in ("train", "test", "extra"):
        draw(tmp_path / name / "a" / "1.png", RED)
    with pytest.raises(DataError, match="extra, test, train: expected either class folders, or only train"):
        read(tmp_path)


def test_a_class_only_in_test_is_refused(tmp_path):
    for name in ("train/a", "train/b", "test/c"):
        draw(tmp_path / name / "1.png", RED)
    with pytest.raises(DataError, match=r"test holds the class 'c', which .*train does not: a, b"):
        read(tmp_path)


def test_a_cache_that_cannot_be_written(photos, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"set EDGEPRUNE_CACHE to a folder that can be written"):
        read(photos)


def test_a_full_disk_is_an_error_and_leaves_nothing(photos, cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data_images.os, "fsync", full)
    with pytest.raises(DataError, match="No space left on device"):
        read(photos)
    assert list(cache.iterdir()) == []
