"""Body sites: DICOM codes and words of anatomic regions in the words of HAM10000 and the ISIC Archive."""

from typing import Final

#: Our word to the codes that mean it, by coding scheme: SNOMED CT (SCT), the SNOMED RT codes that DICOM used before
#: (SRT, SNM3 or 99SDM; PS3.16, 8.1), the Foundational Model of Anatomy and DICOM's own. The codes are those of PS3.16
#: CID 4029 (Dermatology Anatomic Site), CID 4031 (Common Anatomic Region) and CID 4 (Anatomic Region) that lie within
#: one site; `producer/DICOM.md` has their meanings.
_CODES: Final[dict[str, dict[str, str]]] = {
    "abdomen": {
        "SCT": (
            "315003 11708003 27947004 30598005 48544008 50519007 68505006 75093004 86367003 90290004 113345001 "
            "367578008 699914002 699935000 818981001"
        ),
        "SRT": (
            "R-FB4EF R-FB504 T-02480 T-02481 T-02483 T-02488 T-D4000 T-D4110 T-D4120 T-D4130 T-D4140 T-D4200 "
            "T-D4230 T-D4240"
        ),
    },
    "acral": {
        "SCT": "26795005 35739000 52953006 70887009 89784008",
        "SRT": "T-02652 T-02665 T-02666 T-02853 T-02854",
        "FMA": "38107 38110 38113 38116 38119 38341 38344 38347 38354 38357",
        "DCM": "130317",
    },
    "anterior torso": {
        "SCT": "181491009",
        "SRT": "T-02408",
    },
    "back": {
        "SCT": "52612000 66643007 77568009 113182001 244111001 699893008 1017210004 1017211000",
        "SRT": "R-FB4DA T-0242A T-02450 T-02452 T-D2100 T-D2300",
        "FMA": "49943",
        "DCM": "130301 130302 130303 130304 130323",
    },
    "chest": {
        "SCT": (
            "19100000 33564002 51185008 54468004 66288003 72005009 76365002 76752008 77831004 91691001 244106003 "
            "244107007 699915001 816094009"
        ),
        "SRT": (
            "R-FB4F0 T-02414 T-02425 T-02426 T-02431 T-02432 T-04000 T-04002 T-04003 T-04004 T-04005 T-D3000 T-D3136"
        ),
        "FMA": "61423 61426 61427 61439",
    },
    "ear": {
        "SCT": (
            "1902009 2059009 24483006 38407007 45591000 51098001 57726007 79313003 79502000 84301002 86409001 "
            "86719006 117590005"
        ),
        "SRT": (
            "T-02113 T-02114 T-02200 T-02202 T-02211 T-02212 T-02213 T-02214 T-02217 T-02218 T-02219 T-AB000 "
            "T-AB001 T-AB200"
        ),
        "DCM": "130305 130307 130308 130310 130315 130316 130318 130319 130320 130321",
    },
    "face": {
        "SCT": (
            "16251004 16621002 23747009 27887005 36141000 37108007 37671003 40069000 41310005 45206002 60819002 "
            "66934001 68598004 68698007 73897004 79283007 80243003 84365009 85803001 88089004 89545001 110488009 "
            "113179006 244097004 314395006 362916000 367577003 371398005"
        ),
        "SRT": (
            "T-01530 T-02104 T-02106 T-02111 T-02120 T-02121 T-02131 T-02132 T-02135 T-02136 T-02140 T-02141 "
            "T-02142 T-02143 T-02148 T-02150 T-02151 T-02152 T-02153 T-02155 T-0215D T-02164 T-21000 T-AA810 "
            "T-D0801 T-D1200 T-D1206 T-D149C"
        ),
        "FMA": "59532 312647 312651",
        "DCM": "130306 130311 130312 130314 130322",
    },
    "foot": {
        "SCT": (
            "29707007 52034004 56459004 60496002 84607009 699909001 699919007 770805009 770820003 770821004 "
            "770822006 770823001 770825008"
        ),
        "SRT": "R-FB4EA R-FB4F4 T-02841 T-02850 T-02870 T-D9700 T-D9800",
        "FMA": "37873 37876 37879 37882 37885",
        "DCM": "130309 130313",
    },
    "genital": {
        "SCT": (
            "4019005 7991003 18857001 18911002 20233005 23213005 29353003 35900000 38864007 45292006 48014002 "
            "53505006 59112000 60944009 73058008 76723005 81992007 128252004 128253009 244117002 244118007 "
            "279478000 279479008 279867004"
        ),
        "SRT": (
            "T-02500 T-02501 T-02508 T-02520 T-02523 T-02525 T-02527 T-02528 T-02530 T-02531 T-02536 T-02537 "
            "T-02545 T-59900 T-75181 T-81000 T-81001 T-81206 T-81230 T-81270 T-82006 T-91000 T-98000 T-D2700"
        ),
    },
    "hand": {
        "SCT": (
            "7569003 33712006 76505004 85562004 244169007 281642007 770809003 770810008 770815003 770816002 "
            "770817006 770818001"
        ),
        "SRT": "T-02650 T-0265D T-D0315 T-D8700 T-D8800 T-D8810",
        "FMA": "38321 38324 38327 38330 38333",
    },
    "head/neck": {
        "SCT": "774007 69536005 70762009",
        "SRT": "T-02100 T-D1000 T-D1100",
    },
    "lateral torso": {
        "SCT": "58602004 76261009 91470000",
        "SRT": "T-02420 T-D2310 T-D8100 T-D8104",
    },
    "lower extremity": {
        "SCT": (
            "4578000 25763004 30021000 32361000 47224004 61248009 61685007 68367000 72696002 73958006 84507004 "
            "181553006 181563003 181564009 371304004"
        ),
        "SRT": (
            "T-0262C T-02811 T-02812 T-02814 T-02821 T-0282E T-02831 T-02833 T-02848 T-02849 T-D9000 T-D9100 "
            "T-D9200 T-D9310 T-D9400"
        ),
    },
    "neck": {
        "SCT": "4658004 5272005 5713008 11584001 34926004 43081002 45048000 76072005 77621008 170887008 182329002",
        "SRT": "T-02156 T-02300 T-02302 T-02304 T-02305 T-02306 T-D03C9 T-D1600 T-D1603 T-D161E T-D1620",
        "DCM": "130300",
    },
    "oral/genital": {
        "SCT": "8001006 18444004 21974007 36152006 46353006 113277000 123851003 245814000 245823002 245831007",
        "SRT": "T-51210 T-51300 T-52110 T-52210 T-53000 T-53010 T-53012 T-5493D T-5494D T-D0662",
        "FMA": "55031 55060 60030 60031 281534 281537 289677",
    },
    "posterior torso": {
        "SCT": "22180002 46862004 63029009",
        "SRT": "T-02471 T-02506 T-D2600",
    },
    "scalp": {
        "SCT": "21672008 41695006 43067004 61719002 79951008",
        "SRT": "T-02102 T-02107 T-02108 T-02109 T-D1160",
    },
    "trunk": {
        "SCT": "22943007 54440003",
        "SRT": "T-02401 T-D2000",
    },
    "upper extremity": {
        "SCT": (
            "14975008 16982005 17957002 24527008 40983000 41550009 45981001 52876008 53120007 70559009 72939005 "
            "181536004 371311000"
        ),
        "SRT": (
            "T-02008 T-02612 T-02613 T-02621 T-02631 T-02632 T-02641 T-02642 T-D077A T-D2220 T-D8000 T-D8200 T-D8500"
        ),
    },
}

#: Our word to the defined terms of Body Part Examined (PS3.16, annex L) and the plainest words that devices write.
_BODY_PARTS: Final = {
    "abdomen": "ABDOMEN",
    "acral": "PALM SOLE",
    "back": "BACK LUMBAR",
    "chest": "BREAST CHEST THORAX STERNUM",
    "ear": "EAR",
    "face": "CHEEK EYELID FACE FOREHEAD LIP NOSE CHIN",
    "foot": "FOOT TOE HEEL",
    "genital": "ANUS PENIS PERINEUM SCROTUM VULVA GENITALIA",
    "hand": "FINGER HAND THUMB",
    "head/neck": "HEAD HEADNECK",
    "lateral torso": "AXILLA FLANK",
    "lower extremity": "ANKLE CALF KNEE LEG LOWERLEG LOWERLIMB THIGH",
    "neck": "NECK SUBMANDIBULAR",
    "oral/genital": "MOUTH TONGUE",
    "posterior torso": "BUTTOCK",
    "scalp": "SCALP",
    "trunk": "TRUNK",
    "upper extremity": "ARM ELBOW FOREARM SHOULDER UPPERARM UPPERLIMB WRIST",
}

#: Both words say the same of a site; the second is the more general (`model.metadata` has the same).
_GENERAL: Final = {
    "abdomen": "anterior torso",
    "acral": "palms/soles",
    "back": "posterior torso",
    "chest": "anterior torso",
    "ear": "head/neck",
    "face": "head/neck",
    "foot": "lower extremity",
    "genital": "oral/genital",
    "hand": "upper extremity",
    "neck": "head/neck",
    "scalp": "head/neck",
}

_SCHEMES: Final = {"SNM3": "SRT", "99SDM": "SRT", "SNOMED-CT": "SCT"}
_BY_CODE: Final = {
    (scheme, code): site
    for site, schemes in _CODES.items()
    for scheme, codes in schemes.items()
    for code in codes.split()
}
_BY_BODY_PART: Final = {site.upper().replace(" ", ""): site for site in (*_CODES, *_GENERAL.values())} | {
    part: site for site, parts in _BODY_PARTS.items() for part in parts.split()
}


def site_of_code(scheme: str, code: str) -> str | None:
    """Look an anatomic region up.

    Args:
        scheme: Coding scheme designator, such as SCT.
        code: Code value.

    Returns:
        Our word for the site, or None where the table has none.

    Examples:
        >>> site_of_code("SRT", "T-D1200")
        'face'
    """
    return _BY_CODE.get((_SCHEMES.get(scheme, scheme), code))


def site_of_body_part(text: str) -> str | None:
    """Look a word of Body Part Examined up; letter case, blanks and underscores do not matter.

    Args:
        text: The word.

    Returns:
        Our word for the site, or None where the table has none.
    """
    return _BY_BODY_PART.get(text.upper().replace(" ", "").replace("_", ""))


def same_site(one: str, other: str) -> bool:
    """Say whether two words for a site agree, as a word does with the more general one."""
    first, second = one.strip().casefold(), other.strip().casefold()
    return first == second or _GENERAL.get(first, first) == _GENERAL.get(second, second)
