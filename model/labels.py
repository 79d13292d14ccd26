"""The seven diagnoses of HAM10000, their order, and which of them are malignant."""

from __future__ import annotations

from typing import Final

#: Order of every probability vector in the project (Tschandl et al., Sci Data 5:180161, alphabetical).
CLASSES: Final = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")

#: Malignant or premalignant: their posterior summed is the malignant score.
MALIGNANT: Final = ("akiec", "bcc", "mel")

MALIGNANT_INDEX: Final = tuple(CLASSES.index(name) for name in MALIGNANT)
