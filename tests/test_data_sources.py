"""Every kind of source, and what each says when it cannot be read."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from edgeprune import data_sources
from edgeprune.data_options import DataOptions
from edgeprune.data_sources import from_object, read
from edgeprune.errors import DataError, MissingDependency, NameUnknown

X, Y = np.arange(12, dtype=np.uint8).reshape(4, 3), np.array([0, 1, 0, 1])
PAIR = (X, Y)


def parts(source, **options):
    return {name: (np.asarray(x).tolist(), np.asarray(y).tolist()) for name, (x, y) in source.parts.items()}


def npz(folder, **arrays):
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


class Dataset:
    """As much of tf.data.Dataset as is used: a list of (x, y) elements."""

    def __init__(self, elements, rank=None, cardinality=None):
        self.elements, self.size = elements, len(elements) if cardinality is None else cardinality
        shapes = [np.shape(part) for part in elements[0]] if elements else [(3,), ()]
        self.element_spec = tuple(types.SimpleNamespace(shape=Shape(shape)) for shape in shapes)

    def cardinality(self):
        return self.size

    def as_numpy_iterator(self):
        return iter(self.elements)

    def batch(self, size):
        groups = [self.elements[start : start + 2] for start in range(0, len(self.elements), 2)]
        return Dataset([tuple(np.stack(column) for column in zip(*group, strict=True)) for group in groups])


class Shape(tuple):
    rank = property(len)


EACH = ([X.tolist(), Y.tolist()],)


# .npz


def test_npz_of_one_set(tmp_path):
    assert parts(read(npz(tmp_path, x=X, y=Y), DataOptions())) == {"all": (X.tolist(), Y.tolist())}


def test_npz_of_three_sets(tmp_path):
    file = npz(tmp_path, x_train=X, y_train=Y, x_val=X[:2], y_val=Y[:2], x_test=X[2:], y_test=Y[2:], labels=["a", "b"])
    source = read(str(file), DataOptions())
    assert {name: len(y) for name, (_, y) in source.parts.items()} == {"train": 4, "val": 2, "test": 2}
    assert source.labels == ("a", "b")


def test_npz_with_other_names(tmp_path):
    file = npz(tmp_path, images=X, targets=Y, extra=Y)
    source = read(file, DataOptions(keys={"x": "images", "y": "targets"}))
    assert parts(source) == {"all": (X.tolist(), Y.tolist())}
    assert source.notes == ("not used of the data: extra",)


@pytest.mark.parametrize(
    ("arrays", "keys", "message"),
    [
        ({"x_train": X}, {}, r"has no 'y_train'\. It holds x_train; expected x_train, y_train, x_test, y_test"),
        ({"x": X}, {}, r"has no 'y'"),
        ({"x_test": X, "y_test": Y}, {}, r"has no 'x_train'.*data\.keys: \{x_train: NAME\}"),
        ({"X_train": X, "y_train": Y}, {}, r"has no 'x_train'\. Did you mean 'X_train'\?"),
        ({"x_train": X, "y_train": Y, "x_test": X}, {}, "has no 'y_test'"),
        ({"x_train": X, "y_train": Y, "y_val": Y}, {}, "has no 'x_val'"),
        ({"x": X, "y": Y}, {"x": "images"}, r"has no 'images', which data\.keys names for x\. It holds x, y"),
    ],
)
def test_npz_with_missing_keys(tmp_path, arrays, keys, message):
    with pytest.raises(DataError, match=message):
        read(npz(tmp_path, **arrays), DataOptions(keys=keys))


def test_npz_with_a_pickle_is_never_read(tmp_path):
    file = npz(tmp_path, x=np.array([1, "a", None], dtype=object), y=Y)
    with pytest.raises(DataError, match=r"Python objects \(a pickle\), which can run code"):
        read(file, DataOptions())


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "empty"])
def test_a_damaged_npz(tmp_path, damage):
    file = npz(tmp_path, x=np.arange(3000), y=np.arange(3000))
    whole = file.read_bytes()
    flipped = whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:]
    file.write_bytes({"cut": whole[:-200], "flip": flipped, "text": b"hello", "empty": b""}[damage])
    with pytest.raises(DataError, match=r"data\.npz (cannot be read|holds Python objects)"):
        read(file, DataOptions())


def test_a_single_array_is_no_npz(tmp_path):
    with (tmp_path / "x.npz").open("wb") as stream:
        np.save(stream, X)
    with pytest.raises(DataError, match=r"single array, not an .npz archive"):
        read(tmp_path / "x.npz", DataOptions())


def test_a_file_that_is_not_there(tmp_path):
    npz(tmp_path, x=X, y=Y)
    with pytest.raises(DataError, match=r"no data '.*dta\.npz'\. Did you mean 'data\.npz'\?"):
        read(tmp_path / "dta.npz", DataOptions())
    with pytest.raises(DataError, match="Did you mean 'keras:'"):
        read("kears:mnist-1", DataOptions())


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"data\.csv is no data that edgeprune reads\. Expected an \.npz file"):
        read(tmp_path / "data.csv", DataOptions())


def test_a_path_that_cannot_be_looked_at():
    with pytest.raises(DataError, match="cannot be read"):
        read("x" * 5000, DataOptions())


# live objects


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (PAIR, ["all"]),
        ([X, Y.tolist()], ["all"]),
        ((PAIR, PAIR), ["train", "test"]),
        ((PAIR, PAIR, PAIR), ["train", "val", "test"]),
        ({"x": X, "y": Y}, ["all"]),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y}, ["train", "test"]),
        ({"train": PAIR, "test": PAIR}, ["train", "test"]),
        (Dataset([PAIR]), ["all"]),
        ((Dataset([PAIR]), Dataset([PAIR])), ["train", "test"]),
        ((Dataset([PAIR]), PAIR, PAIR), ["train", "val", "test"]),
        ({"train": Dataset([PAIR]), "val": PAIR}, ["train", "val"]),
    ],
)
def test_live_objects(value, names):
    assert parts(from_object(value, DataOptions())) == {name: (X.tolist(), Y.tolist()) for name in names}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (X, "The data is a ndarray, which is no form"),
        (None, "The data is a NoneType"),
        ((X, Y, X), "The data is a tuple of 3"),
        ({"train": PAIR, "tst": PAIR}, "unknown key 'tst'"),
        ({"train": X, "test": PAIR}, "A split is a ndarray"),
        ({"z": X}, r"The data has no 'x_train'"),
    ],
)
def test_live_objects_of_no_known_form(value, message):
    with pytest.raises(DataError, match=message):
        from_object(value, DataOptions())


# tf.data


def test_batches_are_joined_and_single_samples_batched():
    samples = list(zip(X, Y, strict=True))
    for dataset in (Dataset(samples), Dataset([(X[:3], Y[:3]), (X[3:], Y[3:])])):
        assert parts(from_object(dataset, DataOptions())) == {"all": (X.tolist(), Y.tolist())}


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Dataset([PAIR], cardinality=-1), r"is endless.*take \.repeat\(\) out"),
        (Dataset([]), "is empty"),
        (Dataset([(X, Y, Y)]), r"Expected pairs \(x, y\)"),
    ],
)
def test_datasets_that_are_refused(dataset, message):
    with pytest.raises(DataError, match=message):
        from_object(dataset, DataOptions())


def test_a_dataset_larger_than_memory_is_refused():
    with pytest.raises(DataError, match=r"holds more than 2e-08 GiB.*raise data\.memory_gib"):
        from_object(Dataset([PAIR]), DataOptions(memory_gib=2e-8))


def test_a_dataset_that_raises():
    class Broken(Dataset):
        def as_numpy_iterator(self):
            raise RuntimeError("shapes\n differ")

    with pytest.raises(DataError, match=r"tf\.data\.Dataset raised RuntimeError: shapes differ"):
        from_object(Broken([PAIR]), DataOptions())


@pytest.mark.slow
def test_real_tf_data():
    tf = importlib.import_module("tensorflow")
    images = np.arange(5 * 4 * 4, dtype=np.uint8).reshape(5, 4, 4)
    rows = tf.data.Dataset.from_tensor_slices((images, np.arange(5)))
    for dataset in (rows, rows.batch(2), rows.batch(5, drop_remainder=True)):
        assert parts(from_object(dataset, DataOptions())) == {"all": (images.tolist(), [0, 1, 2, 3, 4])}
    with pytest.raises(DataError, match="endless"):
        from_object(rows.repeat(), DataOptions())
    ragged = tf.data.Dataset.from_generator(lambda: iter([]), output_types=(tf.float32, tf.int32))
    with pytest.raises(DataError, match="known rank"):
        from_object(ragged, DataOptions())


# kind:name and module:function


def test_sklearn_digits_keeps_the_values_as_stored():
    source = read("sklearn:digits", DataOptions())
    x, y = source.parts["all"]
    assert x.shape == (1797, 8, 8, 1) and x.dtype == np.uint8 and x.max() == 16
    assert source.labels == tuple("0123456789") and y[:3].tolist() == [0, 1, 2]


def test_sklearn_tables_and_values():
    x, _ = read("sklearn:iris", DataOptions()).parts["all"]
    assert x.shape == (150, 4) and x.dtype.kind == "f"
    assert read("sklearn:diabetes", DataOptions()).labels == ()


def test_sklearn_names_that_cannot_be_used():
    with pytest.raises(NameUnknown, match=r"'digit'. Did you mean 'digits'"):
        read("sklearn:digit", DataOptions())
    with pytest.raises(DataError, match="'sklearn:files' raised TypeError"):
        read("sklearn:files", DataOptions())
    with pytest.raises(DataError, match="'sklearn:sample_images' holds no samples with targets"):
        read("sklearn:sample_images", DataOptions())


def failing():
    raise OSError("URL fetch failure")


@pytest.fixture
def keras(monkeypatch):
    """A stand-in for tf_keras with two data sets, one of which cannot be downloaded."""
    datasets = types.SimpleNamespace(
        mnist=types.SimpleNamespace(load_data=lambda: (print("downloading"), (PAIR, PAIR))[1]),
        cifar10=types.SimpleNamespace(load_data=failing),
    )
    monkeypatch.setitem(sys.modules, "edgeprune.keras", types.ModuleType("edgeprune.keras"))
    monkeypatch.setitem(sys.modules, "tf_keras", types.SimpleNamespace(datasets=datasets))


def test_keras(keras, capsys):
    capsys.readouterr()
    assert list(read("keras:mnist", DataOptions()).parts) == ["train", "test"]
    assert capsys.readouterr().out == ""  # stdout may be carrying JSON


def test_keras_names_that_cannot_be_used(keras):
    with pytest.raises(NameUnknown, match=r"'minst'. Did you mean 'mnist'"):
        read("keras:minst", DataOptions())
    with pytest.raises(DataError, match=r"'keras:cifar10' raised OSError: URL fetch failure .*check the network"):
        read("keras:cifar10", DataOptions())


class Names:
    names = ("no", "yes")


class Builder:
    def __init__(self, splits=("train", "test", "unsupervised")):
        features = {"image": object(), "label": Names()}
        self.info = types.SimpleNamespace(splits=splits, features=features, supervised_keys=("image", "label"))

    def download_and_prepare(self):
        pass

    def as_dataset(self, split, as_supervised):
        assert as_supervised
        return Dataset(list(zip(X, Y, strict=True)))


@pytest.fixture
def tfds(monkeypatch):
    builders = {"good": Builder(), "odd": Builder(("all",))}
    monkeypatch.setitem(sys.modules, "edgeprune.keras", types.ModuleType("edgeprune.keras"))
    stand_in = types.SimpleNamespace(
        builder=builders.__getitem__, list_builders=lambda with_community_datasets: [*builders, "lost"]
    )
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", stand_in)


def test_tfds(tfds):
    source = read("tfds:good", DataOptions())
    assert list(source.parts) == ["train", "test"] and source.labels == ("no", "yes")


def test_tfds_that_cannot_be_used(tfds):
    with pytest.raises(DataError, match=r"has the splits all and .*: expected a train split"):
        read("tfds:odd", DataOptions())
    with pytest.raises(DataError, match="'tfds:lost' raised KeyError"):
        read("tfds:lost", DataOptions())
    with pytest.raises(NameUnknown, match=r"no tfds data set 'godo'. Did you mean 'good'"):
        read("tfds:godo", DataOptions())


@pytest.mark.parametrize(
    ("source", "package", "install"),
    [
        ("tfds:mnist", "tensorflow_datasets", r"pip install 'edgeprune\[tfds\]'"),
        ("keras:mnist", "tf_keras", r"pip install 'edgeprune\[host\]'"),
        ("sklearn:digits", "sklearn.datasets", "pip install scikit-learn"),
    ],
)
def test_a_missing_package_is_named_with_its_command(source, package, install, monkeypatch):
    monkeypatch.setitem(sys.modules, "edgeprune.keras", types.ModuleType("edgeprune.keras"))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependency, match=install):
        read(source, DataOptions())


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "own_data.py").write_text(
        "import numpy as np\nname = 5\n\n\ndef load():\n    return np.zeros((4, 2)), [0, 1, 0, 1]\n\n\n"
        "def broken():\n    return 1 / 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_data"
    sys.modules.pop("own_data", None)


def test_module_function(module):
    assert parts(read("own_data:load", DataOptions())) == {"all": ([[0, 0]] * 4, [0, 1, 0, 1])}


def test_module_function_that_cannot_be_used(module):
    with pytest.raises(NameUnknown, match=r"'laod'. Did you mean 'load'"):
        read("own_data:laod", DataOptions())
    with pytest.raises(NameUnknown, match="no module 'nowhere'"):
        read("nowhere:load", DataOptions())
    with pytest.raises(DataError, match=r"'own_data:name' is a int. Expected a function"):
        read("own_data:name", DataOptions())
    with pytest.raises(DataError, match=r"raised ZeroDivisionError: division by zero \(.*own_data\.py:10\)"):
        read("own_data:broken", DataOptions())


def test_a_file_wins_over_a_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("keras:mnist.npz", x=X, y=Y)
    assert list(read(Path("keras:mnist.npz"), DataOptions()).parts) == ["all"]


def test_what_reports_call_a_source(tmp_path):
    assert data_sources.described(tmp_path) == str(tmp_path)
    assert data_sources.described("keras:mnist") == "keras:mnist"
    assert data_sources.described(PAIR) == "arrays in memory"
    assert data_sources.described((Dataset([PAIR]), PAIR)) == "tf.data in memory"


# several inputs and outputs


def test_keys_name_several_inputs_and_outputs(tmp_path):
    keys = {
        f"{letter}_{part}_{name}": np.full((count, 2), number)
        for number, (letter, name) in enumerate([("x", "left"), ("x", "right"), ("y", "a"), ("y", "b_c")])
        for part, count in (("train", 4), ("test", 3))
    }
    np.savez(tmp_path / "two.npz", labels_a=np.array(["no", "yes"]), other=np.zeros(1), **keys)
    source = read(str(tmp_path / "two.npz"), DataOptions())
    x, y = source.parts["test"]
    assert list(source.parts) == ["train", "test"] and list(x) == ["left", "right"] and list(y) == ["a", "b_c"]
    assert y["b_c"].tolist() == [[3, 3]] * 3
    assert source.labels == {"a": ("no", "yes")} and source.notes == ("not used of the data: other",)


def test_one_array_wins_over_several():
    source = read(
        {"x": np.zeros((4, 2)), "y": np.zeros(4), "x_left": np.zeros(4), "x_right": np.zeros(4)}, DataOptions()
    )
    assert source.parts["all"][0].shape == (4, 2) and source.notes == ("not used of the data: x_left, x_right",)


def test_live_forms_of_several_inputs():
    a, b, y = np.zeros((4, 2)), np.ones((4, 3)), np.arange(4)
    named = {"a": a, "b": b}
    assert read((named, y), DataOptions()).parts["all"] == (named, y)
    assert read(((a, b), y), DataOptions()).parts["all"] == ((a, b), y)
    parts = read(((named, y), (named, y)), DataOptions()).parts
    assert list(parts) == ["train", "test"] and parts["test"] == (named, y)
    assert read({"train": (named, y)}, DataOptions()).parts["train"] == (named, y)
