"""Data sets of TensorFlow Datasets and of Hugging Face, where these are installed."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from croc_jax.data.channels import decode_pixels
from croc_jax.data.labeled.classes import open_classes
from croc_jax.data.sources import open_sources
from croc_jax.data.sources.huggingface import HuggingFaceSource
from croc_jax.data.sources.identity import identify
from croc_jax.data.sources.tfds import TfdsSource
from croc_jax.pixel_format import PixelFormat
from tests.data.tiny_images import check_copies, contents, encode, names

BANDS = PixelFormat(channels=4, dtype="uint16")


def bands(i):
    return (1000 * i + np.arange(6 * 8 * 4, dtype=np.uint16)).reshape(6, 8, 4)


@pytest.fixture(scope="module")
def tfds():
    return pytest.importorskip("tensorflow_datasets")


@pytest.fixture(scope="module")
def data_dir(tfds, tmp_path_factory):
    """Data sets with one image an example, with labels and boxes too, with two images, and with none."""
    home = tmp_path_factory.mktemp("tfds")
    for i in range(5):
        (home / f"{i}.png").write_bytes(encode(i))
    Image.new("L", (8, 6)).save(home / "mask.png")
    image, features = tfds.features.Image(), tfds.features
    box = features.Sequence({"bbox": features.BBoxFeature()})
    mask = features.LabeledImage(labels=3, shape=(None, None, 1))

    def prepare(called, example, file_format="array_record", **feature):
        """Builds a data set whose examples differ in their images alone."""

        class TinyBuilder(tfds.core.GeneratorBasedBuilder):
            name = called
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                return tfds.core.DatasetInfo(builder=self, features=features.FeaturesDict(feature))

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples(5), "test": self._generate_examples(2)}

            def _generate_examples(self, count):
                for i in range(count):
                    yield i, {key: value(i) for key, value in example.items()}

        TinyBuilder(data_dir=home / "data", file_format=file_format).download_and_prepare()

    picture = lambda i: str(home / f"{i}.png")  # noqa: E731
    boxes = lambda i: [{"bbox": features.BBox(0.0, 0.0, 1.0, 1.0)}] * i  # noqa: E731
    rich = {"image": picture, "other": picture, "mask": lambda i: str(home / "mask.png"), "objects": boxes}
    prepare("tiny", {"photo": picture, "label": lambda i: i}, photo=image, label=features.ClassLabel(num_classes=5))
    prepare("rich", rich, image=image, other=features.Image(), mask=mask, objects=box)
    prepare("two", {"left": picture, "right": picture}, left=image, right=features.Image())
    prepare("text", {"text": str}, text=features.Text())
    kind = {"bands": features.Tensor(shape=(6, 8, 4), dtype=np.uint16), "name": features.Text()}
    prepare("bands", {"bands": bands, "name": str}, **kind)
    deep = features.Image(shape=(None, None, 1), dtype=np.uint16, encoding_format="png")
    for i in range(5):
        Image.fromarray(bands(i)[..., 0]).save(home / f"deep{i}.png")
    prepare("deep", {"image": lambda i: str(home / f"deep{i}.png"), "bands": bands}, image=deep, bands=kind["bands"])
    return home / "data"


def test_tfds_images_come_as_they_are_encoded(data_dir):
    source = TfdsSource("tiny", data_dir=str(data_dir))
    # tfds shuffles while it prepares.
    for images in (source, open_sources([f"tfds:rich@{data_dir}"])):
        assert sorted(contents(images)) == sorted(encode(i) for i in range(5))
    assert names(source) == [f"tiny/1.0.0:train:{i}" for i in range(5)]
    check_copies(source)
    chosen = open_sources([f"tfds:two@{data_dir}@right"])
    assert sorted(contents(chosen)) == sorted(encode(i) for i in range(5))
    check_copies(chosen)


def test_tfds_arrays_and_deep_images_keep_their_values(data_dir):
    arrays, deep = (open_sources([f"tfds:{name}:train@{data_dir}"]) for name in ("bands", "deep"))
    chosen = open_sources([f"tfds:deep:train@{data_dir}@bands"])
    # In the order of their keys, which tfds shuffles.
    numbers = sorted(range(5), key=lambda i: decode_pixels(arrays[i], BANDS)[0, 0, 0])
    for i, number in enumerate(numbers):
        np.testing.assert_array_equal(decode_pixels(arrays[number], BANDS), bands(i))
    gray = PixelFormat(channels=1, dtype="uint16")
    for i in range(5):
        np.testing.assert_array_equal(decode_pixels(deep[i], gray), decode_pixels(chosen[i], BANDS)[..., :1])


def test_tfds_splits_and_versions_are_chosen_in_the_spec(data_dir):
    whole = contents(open_sources([f"tfds:tiny@{data_dir}"]))
    assert contents(open_sources([f"tfds:tiny:train[1:3]@{data_dir}"])) == whole[1:3]
    assert contents(open_sources([f"tfds:tiny:1.0.0:train[:40%]@{data_dir}"])) == whole[:2]
    assert contents(open_sources([f"tfds:tiny:train+test@{data_dir}"]))[:5] == whole
    assert len(open_sources([f"tfds:tiny:test@{data_dir}"])) == 2


def test_tfds_classes_come_with_their_images(data_dir):
    split = open_classes(f"tfds:tiny@{data_dir}", "train")
    assert split.class_names == ("0", "1", "2", "3", "4") and len(split) == 5
    batches = list(split.batches(3, resize=6, image_size=4))
    labels = np.concatenate([batch.labels for batch in batches])
    reds = np.concatenate([batch.images[:, 0, 0, 0] for batch in batches])[:5]
    assert sorted(labels) == list(range(5))
    np.testing.assert_array_equal(reds, 10 * labels)
    with pytest.raises(ValueError, match="the data set rich has no class feature called label"):
        open_classes(f"tfds:rich@{data_dir}", "train")
    with pytest.raises(ValueError, match="cannot open split 'val' of tiny"):
        open_classes(f"tfds:tiny@{data_dir}", "val")


def test_tfds_images_are_known_by_their_files_and_rows(data_dir, tmp_path):
    shutil.copytree(data_dir / "tiny", tmp_path / "tiny")
    specs = [f"tfds:tiny{part}@{home}" for home in (data_dir, tmp_path) for part in ("", ":train[:40%]", ":train+test")]
    found = [identify(open_sources([spec])) for spec in specs]
    assert found[:3] == found[3:] and [images.count for images in found[:3]] == [5, 2, 7]
    assert len({images.digest for images in found}) == 3


UNUSABLE = [
    ("tfds:text@{}", "data set text has no image feature, only text"),
    ("tfds:two@{}", r"several image features \(left, right\), none called image: write tfds:two:train@\S+@left or"),
    ("tfds:two@{}@mask", "'mask' is no image feature of the data set two: write tfds:two:train@"),
    ("tfds:tiny:val@{}", r"cannot open split 'val' of tiny in .*'train', 'test'"),
    ("tfds:tiny:train[:0]@{}", r"cannot open split 'train\[:0\]' of tiny in .* 0 length"),
    ("tfds:cifar10@{}", r"no data set cifar10 in .*array_record'\)\.download_and_prepare\(\)"),
    ("tfds:@{}", r"write tfds:NAME\[:SPLIT\]\[@DATA_DIR\[@FEATURE\]\]"),
]


def test_tfds_data_sets_that_cannot_be_used_are_explained(data_dir, tmp_path):
    for spec, message in UNUSABLE:
        with pytest.raises(ValueError, match=message):
            open_sources([spec.format(data_dir)])
    shutil.copytree(data_dir / "tiny", tmp_path / "tiny")
    info = tmp_path / "tiny" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"format without random access: prepare it once: .*array_record"):
        open_sources([f"tfds:tiny@{tmp_path}"])


def test_tfds_is_read_without_tensorflow(data_dir):
    program = (
        "import sys\nfrom croc_jax.data.sources import open_sources\n"
        f"assert len(open_sources(['tfds:tiny@{data_dir}'])[0]) > 50\nassert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("library", "spec", "extra"), [("tensorflow_datasets", "tfds:tiny", "tfds"), ("datasets", "hf:set", "hf")]
)
def test_lack_of_a_library_is_explained(monkeypatch, library, spec, extra):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=rf"needs .*croc_jax\[{extra}\]"):
        open_sources([spec])


@pytest.fixture(scope="module")
def datasets():
    return pytest.importorskip("datasets")


@pytest.fixture
def photos(datasets, tmp_path):
    """Four images: two as bytes, one as a path, and none."""
    (tmp_path / "2.png").write_bytes(encode(2))
    images = [{"bytes": encode(i), "path": None} for i in range(2)]
    images += [{"bytes": None, "path": str(tmp_path / "2.png")}, None]
    features = datasets.Features({"photo": datasets.Image(), "label": datasets.Value("int64")})
    return datasets.Dataset.from_dict({"photo": images, "label": [0, 1, 2, 3]}, features=features)


def save(dataset, folder):
    dataset.save_to_disk(folder)
    return folder


def test_hugging_face_images_come_as_they_are_encoded(photos, tmp_path):
    folder = save(photos.select(range(3)), tmp_path / "set")
    source = open_sources([f"hf:{folder}"])
    assert contents(source) == [encode(i) for i in range(3)]
    assert names(source) == [f"{folder}:{i}" for i in range(3)]
    check_copies(source)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_hugging_face_arrays_keep_their_values(datasets, tmp_path, dtype):
    values = [bands(i).astype(dtype) for i in range(3)]
    features = datasets.Features({"bands": datasets.Array3D(shape=(6, 8, 4), dtype=dtype)})
    folder = save(datasets.Dataset.from_dict({"bands": values}, features=features), tmp_path / "set")
    source = open_sources([f"hf:{folder}"])
    pixels = PixelFormat(channels=4, dtype=dtype, range=(0, 9000))
    np.testing.assert_array_equal([decode_pixels(source[i], pixels) for i in range(3)], values)


def test_hugging_face_images_are_known_by_their_files(photos, tmp_path):
    folders = [
        save(photos.select(range(3)), tmp_path / "set"),
        save(photos.select([1, 0, 2]), tmp_path / "other" / "set"),
    ]
    shutil.copytree(folders[0], tmp_path / "copy")
    one, other, copy = (identify(HuggingFaceSource(folder)) for folder in (*folders, tmp_path / "copy"))
    assert one == copy and one.count == 3 and one.digest != other.digest


def test_hugging_face_rows_without_an_image_are_os_errors(photos, tmp_path):
    source = HuggingFaceSource(save(photos, tmp_path / "set"))
    (tmp_path / "2.png").unlink(missing_ok=True)
    with pytest.raises(OSError, match="set:3: this row has no image"):
        source[3]


def test_hugging_face_splits_are_folders(datasets, photos, tmp_path):
    folder = save(datasets.DatasetDict({"train": photos, "test": photos.select([1])}), tmp_path / "sets")
    assert contents(open_sources([f"hf:{folder}/test"])) == [encode(1)]
    with pytest.raises(ValueError, match=r"several splits: name one of them, hf:\S+/train or hf:\S+/test"):
        HuggingFaceSource(folder)
    with pytest.raises(ValueError, match=r"no folder \S+/val \(its splits are train, test\)"):
        HuggingFaceSource(f"{folder}/val")
    only = save(datasets.DatasetDict({"test": photos.select([1])}), tmp_path / "only")
    assert contents(HuggingFaceSource(only)) == [encode(1)]


def test_hugging_face_data_sets_that_cannot_be_used_are_explained(datasets, photos, tmp_path):
    with pytest.raises(ValueError, match="no image feature, only label"):
        HuggingFaceSource(save(photos.select_columns(["label"]), tmp_path / "labels"))
    both = photos.add_column("second", [None] * 4, feature=datasets.Image())
    folder = save(both, tmp_path / "both")
    with pytest.raises(ValueError, match=rf"several image features \(photo, second\), .*hf:{folder}@photo or hf:"):
        HuggingFaceSource(folder)
    assert HuggingFaceSource(f"{folder}@photo")[1] == encode(1)
    with pytest.raises(ValueError, match="'label' is no image feature of the data set"):
        HuggingFaceSource(f"{folder}@label")
    listed = photos.select_columns(["label"]).add_column(
        "frames", [[None]] * 4, feature=datasets.List(datasets.Image())
    )
    with pytest.raises(ValueError, match="images in sequences and groups, as in frames, are not read"):
        HuggingFaceSource(save(listed, tmp_path / "listed"))
    with pytest.raises(ValueError, match=r"no folder .*nowhere: hf: reads what save_to_disk wrote"):
        HuggingFaceSource(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is empty"):
        HuggingFaceSource(save(photos.select([]), tmp_path / "empty"))
