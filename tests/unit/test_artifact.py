"""A model's files are what they claim, or they are refused before a parser sees them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from model.artifact import (
    CARD,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    WEIGHTS,
    artifact_path,
    install_artifact,
    read_manifest,
)
from model.classifier import Classifier
from model.errors import ArtifactError


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(artifact, tmp_path / "copy")


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def claim_weights(folder: Path, weights: bytes) -> None:
    """Put other weights in, and let the manifest name their digest."""
    (folder / WEIGHTS).write_bytes(weights)
    rewrite(folder, lambda manifest: manifest.update(weights_sha256=hashlib.sha256(weights).hexdigest()))


def repack(folder: Path, change: Callable[[h5py.File], None]) -> None:
    file = io.BytesIO((folder / WEIGHTS).read_bytes())
    with h5py.File(file, "r+") as opened:
        change(opened)
    claim_weights(folder, file.getvalue())


@pytest.mark.parametrize(
    ("field", "default", "other"),
    [("cut", "last", "paper"), ("head", "pooled", "flatten"), ("beside", None, "MobileNet")],
)
def test_a_field_that_came_later_changes_the_digest_only_where_it_is_not_the_default(
    copy: Path, field: str, default: str | None, other: str
) -> None:
    # Given a manifest from before the field existed
    before = read_manifest(copy)
    assert field not in json.loads((copy / MANIFEST).read_text())["network"]
    # The digest is that of what stood in it then
    assert field not in before.model_dump(mode="json")["network"]

    # If it is stated, then the default names the same model, and anything else another one
    rewrite(copy, lambda manifest: manifest["network"].update({field: default}))
    assert read_manifest(copy).digest == before.digest
    rewrite(copy, lambda manifest: manifest["network"].update({field: other}))
    assert read_manifest(copy).digest != before.digest


def test_a_flipped_byte_is_refused_by_digest(copy: Path) -> None:
    weights = bytearray((copy / WEIGHTS).read_bytes())
    weights[len(weights) // 2] ^= 1
    (copy / WEIGHTS).write_bytes(weights)

    with pytest.raises(ArtifactError, match="not the file its manifest names"):
        Classifier.load(copy)


def test_a_pickle_in_place_of_the_weights_is_never_unpickled(copy: Path) -> None:
    claim_weights(copy, pickle.dumps({"network": [1.0]}))

    with pytest.raises(ArtifactError, match="cannot be parsed"):
        Classifier.load(copy)


def test_a_keras_archive_with_code_in_it_is_never_built(copy: Path, tmp_path: Path) -> None:
    import keras

    # Given a whole model, as Keras saves it, with a Lambda layer that leaves a trace
    trace = tmp_path / "trace"
    leave = "lambda x: __import__('pathlib').Path({!r}).touch() or x"
    network = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(eval(leave.format(str(trace))))])  # noqa: S307
    trace.unlink(missing_ok=True)
    network.save(tmp_path / "model.keras")

    # If it is put in place of the weights, by itself or as the weights' own description
    claim_weights(copy, (tmp_path / "model.keras").read_bytes())
    with pytest.raises(ArtifactError, match="cannot be parsed"):
        Classifier.load(copy)
    assert not trace.exists()


@pytest.mark.parametrize(
    "layer",
    [
        {"class_name": "Lambda", "config": {"name": "l", "function": ["4wEAAAA=", None, None]}},
        {"class_name": "Popen", "module": "subprocess", "config": {"args": ["true"]}},
        {"class_name": "function", "module": "os", "config": "system", "registered_name": "system"},
    ],
    ids=["a Lambda layer", "a foreign class", "a foreign function"],
)
def test_what_a_weights_file_says_about_a_network_is_not_even_read(copy: Path, layer: dict[str, Any]) -> None:
    # Given the old format of whole models: weights, and a network in the file's attributes
    described = json.dumps({"class_name": "Sequential", "config": {"name": "s", "layers": [layer]}})
    repack(copy, lambda file: file.attrs.update(model_config=described, keras_version="3.15.1", backend="tensorflow"))

    # Then the network is ours as before, and its weights pass the golden prediction
    assert Classifier.load(copy).digest == read_manifest(copy).digest

    # If the description is put among the arrays, then it is refused
    repack(copy, lambda file: file.create_dataset("model_config", data=described))
    with pytest.raises(ArtifactError, match="does not hold this network's arrays"):
        Classifier.load(copy)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["network"].update(backbone="Lambda"), "cannot build"),
        (lambda m: m["network"].update(backbone="os.system"), "cannot build"),
        (lambda m: m["network"].update(layers=[{"class_name": "Lambda"}]), "layers"),
        (lambda m: m["classes"].append("mel2"), "labels and their order"),
        (lambda m: m["classes"].__setitem__(0, "benign"), "labels and their order"),
        (lambda m: m.update(classes=[]), "labels and their order"),
    ],
)
def test_a_manifest_that_names_code_or_other_labels_is_refused(
    copy: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    rewrite(copy, change)

    with pytest.raises(ArtifactError, match=said):
        Classifier.load(copy)


def test_zeroed_weights_with_a_matching_digest_are_caught_by_the_golden_prediction(copy: Path) -> None:
    def zero(file: h5py.File) -> None:
        for name, dataset in file.items():
            if name.startswith("network."):
                dataset[...] = 0

    repack(copy, zero)

    with pytest.raises(ArtifactError, match="golden"):
        Classifier.load(copy)


def test_a_giant_shape_is_refused_before_memory_is_taken(copy: Path) -> None:
    def inflate(file: h5py.File) -> None:
        del file["space.mean"]
        file.create_dataset("space.mean", shape=(10**11,), dtype="f4", chunks=(1024,))

    repack(copy, inflate)

    with pytest.raises(ArtifactError, match="another shape"):
        Classifier.load(copy)


def replace_array(file: h5py.File, name: str, **packing: Any) -> h5py.Dataset:
    """Put an array of zeros of the same shape in place of another."""
    shape = file[name].shape
    del file[name]
    return file.create_dataset(name, shape=shape, dtype="f4", **packing)


def test_a_chunk_that_inflates_to_more_than_its_array_is_refused_before_memory_is_taken(copy: Path) -> None:
    def bomb(file: h5py.File) -> None:
        array = replace_array(file, "space.mean", chunks=file["space.mean"].shape, compression="gzip")
        array.id.write_direct_chunk((0,), zlib.compress(b"\0" * 50_000_000))

    repack(copy, bomb)

    with pytest.raises(ArtifactError, match="wrong size"):
        Classifier.load(copy)


@pytest.mark.parametrize(
    ("packing", "said"),
    [
        ({"compression": "lzf"}, "packed in a way"),
        ({"fletcher32": True}, "packed in a way"),
        ({"maxshape": (None,), "chunks": (10**8,)}, "chunk larger"),
    ],
)
def test_a_packing_that_is_not_ours_is_refused(copy: Path, packing: dict[str, Any], said: str) -> None:
    repack(copy, lambda file: replace_array(file, "space.mean", **packing))

    with pytest.raises(ArtifactError, match=said):
        Classifier.load(copy)


def test_a_link_out_of_the_file_is_refused(copy: Path) -> None:
    def link(file: h5py.File) -> None:
        del file["space.mean"]
        file["space.mean"] = h5py.ExternalLink("elsewhere.h5", "/secret")

    repack(copy, link)

    with pytest.raises(ArtifactError, match="link"):
        Classifier.load(copy)


def test_a_number_that_is_not_finite_is_refused(copy: Path) -> None:
    def poison(file: h5py.File) -> None:
        file["network.classifier.bias"][0] = np.nan

    repack(copy, poison)

    with pytest.raises(ArtifactError, match="not finite"):
        Classifier.load(copy)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["classes"].reverse(), "labels and their order"),
        (lambda m: m.update(preprocessing_version=99), "preprocessing 99"),
        (lambda m: m.update(format=2), "format"),
        (lambda m: m.update(extra="x"), "extra"),
        (lambda m: m["calibration"].update(temperature=0), "temperature"),
        (lambda m: m["network"].update(backbone="Trojan"), "cannot build"),
    ],
)
def test_a_manifest_that_is_not_ours_is_refused_with_the_place(
    copy: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    rewrite(copy, change)

    with pytest.raises(ArtifactError, match=said):
        Classifier.load(copy)


def test_another_threshold_is_another_model(artifact: Path, copy: Path) -> None:
    rewrite(copy, lambda manifest: manifest["operating_point"].update(threshold=0.123))

    assert read_manifest(copy).digest != read_manifest(artifact).digest


def test_installing_twice_keeps_one_sound_copy_and_mends_a_damaged_one(artifact: Path, tmp_path: Path) -> None:
    # Given a store with the model
    digest = read_manifest(artifact).digest
    folder = install_artifact(artifact, tmp_path)
    assert folder == artifact_path(tmp_path, digest)

    # If its weights are damaged on disk and it is installed again
    (folder / WEIGHTS).write_bytes(b"rotten")
    install_artifact(artifact, tmp_path)

    # Then they are sound, and nothing half-written lies beside them
    assert (folder / WEIGHTS).read_bytes() == (artifact / WEIGHTS).read_bytes()
    assert [path.name for path in (tmp_path / "models").iterdir()] == [digest]


def test_what_a_kill_left_half_written_is_swept_and_what_is_being_written_stays(artifact: Path, tmp_path: Path) -> None:
    models = artifact_path(tmp_path, "0" * 64).parent
    left, written = (models / f".partial-{name}" for name in ("left", "written"))
    for draft in (left, written):
        draft.mkdir(parents=True)
        (draft / WEIGHTS).write_bytes(b"half")
    hours_ago = time.time() - 7200
    os.utime(left, (hours_ago, hours_ago))

    install_artifact(artifact, tmp_path)

    assert {path.name for path in models.iterdir()} == {written.name, read_manifest(artifact).digest}


def test_only_the_files_of_an_artifact_are_installed(copy: Path, tmp_path: Path) -> None:
    (copy / "notes.txt").write_text("not a part of the model")

    folder = install_artifact(copy, tmp_path / "store")

    assert {path.name for path in folder.iterdir()} == {MANIFEST, WEIGHTS, CARD}


def test_a_manifest_that_is_too_large_or_no_json_is_refused(copy: Path) -> None:
    for text, said in ((b" " * (MAX_MANIFEST_BYTES + 1), "too large"), (b"{", "refused")):
        (copy / MANIFEST).write_bytes(text)
        with pytest.raises(ArtifactError, match=said):
            read_manifest(copy)


def test_a_damaged_model_is_not_installed(copy: Path, tmp_path: Path) -> None:
    (copy / WEIGHTS).write_bytes(b"rotten")

    with pytest.raises(ArtifactError):
        install_artifact(copy, tmp_path / "store")

    assert not (tmp_path / "store").exists()
