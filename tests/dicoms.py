"""DICOM objects from small pictures, in every transfer syntax and colour that is read; of nobody."""

import io
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.pixels.encoders.native import _encode_frame as encode_runs
from pydicom.sequence import Sequence as Items

SECONDARY_CAPTURE: Final = "1.2.840.10008.5.1.4.1.1.7"
MULTI_FRAME_TRUE_COLOUR: Final = "1.2.840.10008.5.1.4.1.1.7.4"
PHOTOGRAPH: Final = "1.2.840.10008.5.1.4.1.1.77.1.4"
DERMOSCOPY: Final = "1.2.840.10008.5.1.4.1.1.77.1.7"
ENDOSCOPY: Final = "1.2.840.10008.5.1.4.1.1.77.1.1"
STRUCTURED_REPORT: Final = "1.2.840.10008.5.1.4.1.1.88.33"

#: What `make_dicom` takes as a syntax.
SYNTAXES: Final = {
    "implicit": uid.ImplicitVRLittleEndian,
    "explicit": uid.ExplicitVRLittleEndian,
    "big": uid.ExplicitVRBigEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
    "jpeg": uid.JPEGBaseline8Bit,
    "jpeg2000": uid.JPEG2000,
    "jpeg2000_lossless": uid.JPEG2000Lossless,
    "jpeg_ls": uid.JPEGLSLossless,
    "rle": uid.RLELossless,
}
#: Those whose pixels are the ones that went in.
LOSSLESS: Final = ("implicit", "explicit", "big", "deflated", "jpeg2000_lossless", "jpeg_ls", "rle")
_NATIVE: Final = ("implicit", "explicit", "big", "deflated")


def code(scheme: str, value: str, meaning: str = "meaning") -> Dataset:
    """Make a coded concept, as the items of Anatomic Region Sequence are."""
    item = Dataset()
    item.CodingSchemeDesignator, item.CodeValue, item.CodeMeaning = scheme, value, meaning
    return item


def make_headers(*, sop_class: str = DERMOSCOPY, seed: int = 1, **headers: Any) -> Dataset:
    """Make an object's headers without pixels.

    Args:
        sop_class: SOP class UID.
        seed: The UIDs follow from it: study and series are shared by ten in a row.
        headers: More, by keyword; None takes one out; `AnatomicRegionSequence` may be a list of `code`.
    """
    dataset = Dataset()
    dataset.SOPClassUID = sop_class
    dataset.StudyInstanceUID = uid.generate_uid(entropy_srcs=["study", str(seed // 10)])
    dataset.SeriesInstanceUID = uid.generate_uid(entropy_srcs=["series", str(seed // 10)])
    dataset.SOPInstanceUID = uid.generate_uid(entropy_srcs=["instance", str(seed)])
    dataset.Modality = "XC"
    dataset.PatientName = "Doe^Jane"
    dataset.PatientID = f"patient-{seed}"
    for name, value in headers.items():
        if value is None:
            if name in dataset:
                delattr(dataset, name)
        else:
            setattr(dataset, name, Items(value) if isinstance(value, list) and name.endswith("Sequence") else value)
    return dataset


def make_dicom(
    frames: NDArray[Any] | Sequence[NDArray[Any]],
    syntax: str = "explicit",
    *,
    photometric: str | None = None,
    planar: bool = False,
    stored: int | None = None,
    signed: bool = False,
    offsets: bool = True,
    fragments: int = 1,
    encoded: Sequence[bytes] | None = None,
    **headers: Any,
) -> bytes:
    """Make a DICOM file.

    Args:
        frames: One frame or several: `(h, w, 3)` uint8 RGB, or `(h, w)` uint8 or (u)int16 samples.
        syntax: A key of `SYNTAXES`.
        photometric: Photometric Interpretation of the samples as they are given; RGB is turned into YBR here where this
            says so.
        planar: Planar configuration 1, of uncompressed colour.
        stored: Bits stored; all by default.
        signed: Pixel representation 1.
        offsets: Whether encapsulated pixels have a basic offset table.
        fragments: In how many pieces an encapsulated frame is cut.
        encoded: The frames as they are to be encapsulated, instead of being encoded here.
        headers: As `make_headers` takes them.
    """
    many = [frames] if isinstance(frames, np.ndarray) else list(frames)
    first = many[0]
    colour = first.ndim == 3
    photometric = photometric or ("RGB" if colour else "MONOCHROME2")
    dataset = make_headers(**headers)
    dataset.Rows, dataset.Columns = first.shape[:2]
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = photometric
    if colour:
        dataset.PlanarConfiguration = int(planar)
    if len(many) > 1:
        dataset.NumberOfFrames = str(len(many))
    dataset.BitsAllocated = 8 * first.itemsize
    dataset.BitsStored = stored or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(signed)
    samples = [_samples(frame, photometric) for frame in many] if syntax not in {"jpeg", "jpeg2000"} else many
    if syntax in _NATIVE:
        raw = b"".join(_native(frame, planar=planar, big=syntax == "big") for frame in samples)
        dataset.PixelData = raw + b"\0" * (len(raw) % 2)
        dataset["PixelData"].VR = "OW" if first.itemsize == 2 else "OB"
    else:
        pieces = list(encoded) if encoded is not None else [encode_frame(frame, syntax) for frame in samples]
        dataset.PixelData = encapsulate(pieces, fragments_per_frame=fragments, has_bot=offsets)
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    return write_dicom(dataset, syntax)


def write_dicom(dataset: Dataset, syntax: str = "explicit") -> bytes:
    """Write a data set as a file's bytes; a syntax may be any UID, too."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = SYNTAXES.get(syntax) or uid.UID(syntax)
    out = io.BytesIO()
    dcmwrite(out, dataset, enforce_file_format=True)
    return out.getvalue()


def encode_frame(frame: NDArray[Any], syntax: str, *, photometric: str = "YBR_FULL_422") -> bytes:
    """Encode one frame as a transfer syntax wants it."""
    out = io.BytesIO()
    if syntax == "jpeg":
        Image.fromarray(frame).save(out, "JPEG", quality=90, keep_rgb=photometric == "RGB")
    elif syntax.startswith("jpeg2000"):
        lossy: dict[str, Any] = {} if syntax.endswith("lossless") else {"irreversible": True, "quality_layers": [8]}
        Image.fromarray(frame).save(out, "JPEG2000", no_jp2=True, mct=int(frame.ndim == 3), **lossy)
    elif syntax == "jpeg_ls":
        import jpeg_ls

        out.write(bytes(jpeg_ls.encode_array(np.ascontiguousarray(frame))))
    else:
        out.write(_runs(frame))
    return out.getvalue()


def _runs(frame: NDArray[Any]) -> bytes:
    class _Runner:
        rows, columns = frame.shape[:2]
        samples_per_pixel = frame.shape[2] if frame.ndim == 3 else 1
        bits_allocated = 8 * frame.itemsize

        @staticmethod
        def get_option(_name: str, default: Any = None) -> Any:
            return default

    return bytes(encode_runs(_native(frame, planar=False, big=False), _Runner()))  # type: ignore[arg-type]


def _samples(frame: NDArray[Any], photometric: str) -> NDArray[Any]:
    if photometric not in {"YBR_FULL", "YBR_FULL_422"} or frame.ndim != 3:
        return frame
    ybr = np.asarray(Image.fromarray(frame).convert("YCbCr"))
    if photometric == "YBR_FULL":
        return ybr
    left, right = ybr[:, 0::2], ybr[:, 1::2]
    chroma = ((left[..., 1:].astype(int) + right[..., 1:]) // 2).astype(np.uint8)
    return np.concatenate([left[..., :1], right[..., :1], chroma], axis=2)


def _native(frame: NDArray[Any], *, planar: bool, big: bool) -> bytes:
    laid = np.moveaxis(frame, -1, 0) if planar and frame.ndim == 3 else frame
    return np.ascontiguousarray(laid).astype(laid.dtype.newbyteorder(">" if big else "<")).tobytes()
