"""Captures: what spoke for a diagnosis, laid over what the network saw, as a DICOM Secondary Capture."""

from typing import TYPE_CHECKING, Final

from db.instances import ScreenedInstance
from producer.blending import Blended
from producer.derived import DISCLAIMER, refer_to, start_object

if TYPE_CHECKING:
    from pydicom import Dataset

#: Part of the identifiers: raised when what is drawn of the same verdict changes.
_KIND: Final = "overlay 2"
_SERIES: Final = 99002
_SECONDARY_CAPTURE: Final = "1.2.840.10008.5.1.4.1.1.7"
_DERIVATION: Final = (
    "Scaled down to what the network saw; evidence for the diagnosis laid over it, viridis colours, clear where there "
    "is none."
)


def shows_burned_text(source: "Dataset") -> bool:
    """Say whether a picture of the source may show who the patient is: unless the source denies it, it may."""
    return str(source.get("BurnedInAnnotation") or "").strip().upper() != "NO"


def build_capture(source: "Dataset", finding: ScreenedInstance, picture: Blended) -> "Dataset":
    """Build the overlay of a verdict.

    Args:
        source: Headers of what was screened.
        finding: The verdict.
        picture: What is drawn.

    Returns:
        A Secondary Capture Image (PS3.3, A.8.1) of one frame, RGB without compression.
    """
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes

    made = start_object(source, finding, kind=_KIND, sop_class=_SECONDARY_CAPTURE, series=_SERIES)
    made.Modality, made.ConversionType = "OT", "WSD"
    made.ImageType = ["DERIVED", "SECONDARY"]
    made.PatientOrientation = made.Laterality = None
    made.DateOfSecondaryCapture, made.TimeOfSecondaryCapture = made.ContentDate, made.ContentTime
    made.BurnedInAnnotation = "YES" if shows_burned_text(source) else "NO"
    made.ImageComments, made.DerivationDescription = DISCLAIMER, _DERIVATION
    reference = refer_to(source, finding)
    reference.PurposeOfReferenceCodeSequence = [
        CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)
    ]
    made.SourceImageSequence = [reference]
    _add_pixels(made, picture)
    return made


def _add_pixels(made: "Dataset", picture: Blended) -> None:
    made.SamplesPerPixel, made.PlanarConfiguration, made.PhotometricInterpretation = 3, 0, "RGB"
    made.Rows, made.Columns = picture.height, picture.width
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit, made.PixelRepresentation = 7, 0
    # The thumbnail is kept as JPEG, and what was compressed once has lost what it lost (PS3.3, C.7.6.1.1.5).
    made.LossyImageCompression, made.LossyImageCompressionMethod = "01", "ISO_10918_1"
    made.LossyImageCompressionRatio = f"{len(picture.pixels) / picture.compressed_bytes:.2f}"
    # A value is of even length (PS3.5, 7.1).
    made.PixelData = picture.pixels + b"\0" * (len(picture.pixels) % 2)
    made["PixelData"].VR = "OB"
