"""DICOM unique identifiers that follow from what they name: the same verdict is always the same object."""

import hashlib
import hmac
import uuid
from typing import Final

#: The arc for identifiers made of a UUID (PS3.5, B.2; ITU-T X.667).
_UUID_ARC: Final = "2.25"
#: Keeps what is derived here apart from what another program derives from the same digests.
_NAMESPACE: Final = "lesion-screen"


def derive_uid(*parts: str) -> str:
    """Derive an identifier from texts.

    Args:
        parts: What it depends on: the same texts give the same identifier, on every host and at any time.

    Returns:
        A UID of at most 44 characters below the arc 2.25.
    """
    # A length before each part: two lists of texts that read alike when they are joined are two lists.
    text = "".join(f"{len(part)}:{part}" for part in (_NAMESPACE, *parts))
    return _uid_of(hashlib.sha256(text.encode()).digest())


def replace_uid(uid: str, key: bytes) -> str:
    """Replace an identifier so that only who has the key can tell what by.

    Args:
        uid: The original one.
        key: Secret, 32 bytes.

    Returns:
        A UID, the same for the same original and key.
    """
    return _uid_of(hmac.digest(key, uid.encode("utf-8", "backslashreplace"), "sha256"))


def _uid_of(digest: bytes) -> str:
    # Version 8, an implementation's own derivation, and the variant of RFC 9562 (section 5.8).
    number = int.from_bytes(digest[:16], "big")
    number = number & ~(0xF << 76) | 8 << 76
    number = number & ~(0b11 << 62) | 0b10 << 62
    return f"{_UUID_ARC}.{uuid.UUID(int=number).int}"
