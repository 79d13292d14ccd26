"""An artifact's weights: an HDF5 file that is read as if an enemy had written it."""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.artifact import MAX_WEIGHTS_BYTES, WEIGHTS, Manifest
from model.errors import ArtifactError


def read_weights(folder: Path, manifest: Manifest, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """Read the weights after their digest was checked; no parser sees a file with another digest.

    Args:
        folder: The artifact.
        manifest: Its manifest.
        shapes: Every array that must be in the file, and nothing else.

    Returns:
        Float32 arrays by name.

    Raises:
        ArtifactError: Missing, damaged, or with other names, shapes or types.
    """
    import h5py

    path = folder / WEIGHTS
    try:
        if path.stat().st_size > MAX_WEIGHTS_BYTES:
            raise ArtifactError("The model's weights.h5 is larger than any supported network: install it again.")
        data = path.read_bytes()
    except OSError:
        raise ArtifactError("The model has no readable weights.h5: install it again.") from None
    if hashlib.sha256(data).hexdigest() != manifest.weights_sha256:
        raise ArtifactError("The model's weights.h5 is not the file its manifest names: install it again.")
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            if set(file) != set(shapes):
                raise ArtifactError("The model's weights.h5 does not hold this network's arrays: install it again.")
            return {name: _read_array(file, name, shape) for name, shape in shapes.items()}
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, zlib.error):
        raise ArtifactError("The model's weights.h5 cannot be parsed: install it again.") from None


def _read_array(file: Any, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    import h5py

    # Links could lead out of the file, and the shape is compared before memory is taken for it.
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ArtifactError("The model's weights.h5 holds a link: install it again.")
    array = file[name]
    if not isinstance(array, h5py.Dataset) or array.is_virtual or array.external:
        raise ArtifactError("The model's weights.h5 holds something that is no plain array: install it again.")
    if array.shape != shape or array.dtype.kind != "f" or array.dtype.itemsize > np.dtype(np.float32).itemsize:
        raise ArtifactError(
            "An array of the model's weights.h5 has another shape or type than the network's: install it again."
        )
    _check_chunks(array)
    values = np.asarray(array[()], np.float32)
    if not np.isfinite(values).all():
        raise ArtifactError("The model's weights.h5 holds numbers that are not finite: install it again.")
    return values


def _check_chunks(array: Any) -> None:
    # HDF5 inflates a chunk to whatever length it has, so a megabyte can become a gigabyte before anyone is asked.
    from h5py import h5z

    packing = array.id.get_create_plist()
    filters = [packing.get_filter(index)[0] for index in range(packing.get_nfilters())]
    if not set(filters) <= {h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE}:
        raise ArtifactError("The model's weights.h5 is packed in a way that is not ours: install it again.")
    if array.chunks is None:
        return
    if any(chunk > whole for chunk, whole in zip(array.chunks, array.shape, strict=True)):
        raise ArtifactError("The model's weights.h5 holds a chunk larger than its array: install it again.")
    most = int(np.prod(array.chunks)) * array.dtype.itemsize
    # Deflate adds less than a hundredth to what it cannot compress.
    limit = most + most // 100 + 64
    for index in range(array.id.get_num_chunks()):
        chunk = array.id.get_chunk_info(index)
        if chunk.size > limit or chunk.filter_mask:
            raise ArtifactError("The model's weights.h5 holds a chunk of the wrong size: install it again.")
        _, packed = array.id.read_direct_chunk(chunk.chunk_offset)
        if h5z.FILTER_DEFLATE in filters and len(zlib.decompressobj().decompress(packed, most + 1)) != most:
            raise ArtifactError("The model's weights.h5 holds a chunk of the wrong size: install it again.")


def pack_weights(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Pack float16 or float32 arrays into HDF5, one compressed dataset each; same arrays, same bytes.

    Raises:
        ArtifactError: A value is not finite, such as a weight that does not fit float16.
    """
    import h5py

    out = io.BytesIO()
    with h5py.File(out, "w", track_order=False) as file:
        for name in sorted(arrays):
            array = arrays[name]
            if not np.isfinite(array).all():
                raise ArtifactError("A weight is not finite, or does not fit float16.")
            packing = {"compression": "gzip", "shuffle": True} if array.size > 1 else {}
            file.create_dataset(name, data=array, track_times=False, **packing)
    return out.getvalue()
