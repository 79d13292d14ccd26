"""Codes of our reports: SNOMED CT for the diagnoses, a small scheme of our own for what no public one has."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from producer.worklist import CLASS_NAMES, REFER_REASONS

if TYPE_CHECKING:
    from highdicom.sr import CodedConcept

#: Designator of our own codes (PS3.16, 8.2: private ones begin with 99).
SCHEME: Final = "99LSCREEN"
SCHEME_NAME: Final = "lesion-screen"

#: Diagnosis class to the SNOMED CT concept that comes nearest, and its meaning. A class of HAM10000 may hold more than
#: its concept says (`CLASS_NAMES` has the whole of it), so a report states the class as well.
#:
#: * akiec: 201101007 stands in PS3.16, CID 4405 "Skin Disorder"; the class holds Bowen's disease as well.
#: * bcc: 254701007, "Basal cell carcinoma of skin (disorder)"; 1338007 is the morphology of any site.
#: * bkl: 25499005, "Seborrheic keratosis", which is a morphology: the class holds other keratoses and lentigines.
#: * df: 448015002, Mondo's cross-reference for cutaneous fibrous histiocytoma (MONDO:0006717).
#: * mel: 372244006, "Malignant melanoma (disorder)".
#: * nv: 400096001, "Melanocytic nevus (disorder)"; 21119008 is the morphology.
#: * vasc: 400210000, "Hemangioma (disorder)", which PS3.16 uses in CID 6030; the class holds angiokeratomas, pyogenic
#:   granulomas and haemorrhages as well.
DIAGNOSES: Final[Mapping[str, tuple[str, str]]] = {
    "akiec": ("201101007", "Actinic keratosis"),
    "bcc": ("254701007", "Basal cell carcinoma of skin"),
    "bkl": ("25499005", "Seborrheic keratosis"),
    "df": ("448015002", "Dermatofibroma"),
    "mel": ("372244006", "Malignant melanoma"),
    "nv": ("400096001", "Melanocytic nevus"),
    "vasc": ("400210000", "Hemangioma"),
}

#: Our own codes and their meanings.
OWN: Final[Mapping[str, str]] = {
    "CLASS": "Class of HAM10000",
    **CLASS_NAMES,
    **{f"P_{name}": f"Probability: {words}" for name, words in CLASS_NAMES.items()},
    "MALIGNANT": "Malignant score (akiec, bcc and mel together)",
    "PRIORITISED": "Malignant score reaches the operating point",
    "REFERRED": "Referred to a person whatever the score",
    "REFER_REASON": "Reason for referral",
    **REFER_REASONS,
}


def diagnosis(name: str) -> "CodedConcept":
    """Code a diagnosis in SNOMED CT.

    Args:
        name: One of `db.tables.CLASSES`.

    Returns:
        The concept.
    """
    from highdicom.sr import CodedConcept

    value, meaning = DIAGNOSES[name]
    return CodedConcept(value, "SCT", meaning)


def own(value: str) -> "CodedConcept":
    """Code something in our own scheme.

    Args:
        value: A key of `OWN`, or a reason code that a later version may have added.

    Returns:
        The concept.
    """
    from highdicom.sr import CodedConcept

    return CodedConcept(value, SCHEME, OWN.get(value, value))
