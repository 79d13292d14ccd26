"""The figures that the paper prints in its tables, to stand beside ours.

Nguyen, Bui & Do, "Skin Lesion Classification on Imbalanced Data Using Deep Learning with Soft Attention", Sensors 2022,
22(19), 7530. As printed, faults and all; `FAULTS` names those that are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from model.backbones import BackboneName
from model.labels import CLASSES

SOURCE: Final = "Nguyen, Bui & Do, Sensors 2022, 22(19), 7530"

#: Images of each diagnosis in HAM10000.
TABLE_1: Final = dict(zip(CLASSES, (327, 514, 1099, 115, 1113, 6705, 142), strict=True))

#: Size in MB, parameters in millions, depth of the ImageNet networks; "-" is None.
TABLE_2: Final[Mapping[BackboneName, tuple[float | None, float, int]]] = {
    "ResNet50": (98, 25.6, 107),
    "ResNet152": (232, 60.4, 311),
    "DenseNet201": (80, 20.2, 402),
    "InceptionResNetV2": (215, 55.9, 449),
    "MobileNet": (16, 4.3, 55),
    "MobileNetV2": (14, 3.5, 105),
    "MobileNetV3Small": (None, 2.5, 88),
    "MobileNetV3Large": (None, 5.5, 118),
    "NASNetMobile": (23, 5.3, 308),
    "NASNetLarge": (343, 88.9, 533),
}

#: Accuracy with augmented data.
TABLE_3: Final[Mapping[BackboneName, float]] = {
    "InceptionResNetV2": 0.93,
    "DenseNet201": 0.91,
    "ResNet50": 0.92,
    "VGG16": 0.88,
}

#: Accuracy with metadata and a weighted loss.
TABLE_4: Final[Mapping[BackboneName, float]] = {
    "InceptionResNetV2": 0.89,
    "DenseNet201": 0.89,
    "ResNet50": 0.70,
    "ResNet152": 0.57,
    "MobileNetV2": 0.81,
    "MobileNetV3Large": 0.84,
    "MobileNetV3Small": 0.78,
    "NASNetLarge": 0.86,
    "NASNetMobile": 0.86,
}

#: F1 of the seven classes in the order of `CLASSES`, then their mean: with augmented data, then with metadata and a
#: weighted loss.
TABLE_5_AUGMENTED: Final[Mapping[BackboneName, tuple[float, ...]]] = {
    "DenseNet201": (0.67, 0.78, 0.64, 0.67, 0.61, 0.96, 0.91, 0.74),
    "InceptionResNetV2": (0.69, 0.88, 0.77, 0.29, 0.66, 0.98, 1.0, 0.75),
    "ResNet50": (0.53, 0.86, 0.68, 0.67, 0.57, 0.97, 0.95, 0.74),
    "VGG16": (0.65, 0.70, 0.52, 0.40, 0.53, 0.95, 0.95, 0.67),
}
TABLE_5_METADATA: Final[Mapping[BackboneName, tuple[float, ...]]] = {
    "DenseNet201": (0.84, 0.77, 0.81, 0.83, 0.69, 0.94, 0.97, 0.83),
    "InceptionResNetV2": (0.77, 0.83, 0.83, 0.64, 0.75, 0.94, 0.70, 0.81),
    "ResNet50": (0.49, 0.59, 0.55, 0.36, 0.45, 0.83, 0.80, 0.58),
    "ResNet152": (0.42, 0.38, 0.41, 0.15, 0.40, 0.75, 0.75, 0.46),
    "MobileNetV2": (0.68, 0.79, 0.66, 0.78, 0.54, 0.90, 0.90, 0.75),
    "MobileNetV3Large": (0.72, 0.76, 0.75, 0.92, 0.58, 0.92, 0.92, 0.79),
    "MobileNetV3Small": (0.60, 0.72, 0.61, 0.75, 0.47, 0.89, 0.89, 0.70),
    "NASNetLarge": (0.79, 0.79, 0.80, 0.74, 0.65, 0.92, 0.92, 0.80),
    "NASNetMobile": (0.76, 0.74, 0.78, 0.73, 0.63, 0.93, 0.93, 0.78),
}

#: Recall, as Table 5.
TABLE_6_AUGMENTED: Final[Mapping[BackboneName, tuple[float, ...]]] = {
    "DenseNet201": (0.52, 0.77, 0.58, 0.50, 0.71, 0.97, 1.0, 0.72),
    "InceptionResNetV2": (0.52, 0.88, 0.83, 0.17, 0.65, 0.98, 1.0, 0.71),
    "ResNet50": (0.43, 0.85, 0.70, 0.50, 0.47, 0.98, 0.90, 0.69),
    "VGG16": (0.61, 0.81, 0.44, 0.44, 0.68, 0.95, 0.90, 0.69),
}
TABLE_6_METADATA: Final[Mapping[BackboneName, tuple[float, ...]]] = {
    "DenseNet201": (0.85, 0.75, 0.78, 0.83, 0.63, 0.96, 1.0, 0.82),
    "InceptionResNetV2": (0.82, 0.84, 0.81, 0.67, 0.70, 0.95, 0.93, 0.81),
    "ResNet50": (0.67, 0.63, 0.54, 0.83, 0.63, 0.74, 0.86, 0.70),
    "ResNet152": (0.51, 0.49, 0.35, 0.76, 0.47, 0.63, 0.48, 0.52),
    "MobileNetV2": (0.70, 0.86, 0.72, 0.75, 0.58, 0.86, 1.0, 0.78),
    "MobileNetV3Large": (0.72, 0.76, 0.75, 0.92, 0.58, 0.92, 0.92, 0.80),
    "MobileNetV3Small": (0.76, 0.84, 0.68, 1.0, 0.52, 0.82, 0.93, 0.79),
    "NASNetLarge": (0.73, 0.71, 0.83, 0.92, 0.59, 0.90, 0.93, 0.81),
    "NASNetMobile": (0.82, 0.73, 0.83, 0.92, 0.53, 0.93, 0.93, 0.81),
}

#: Accuracy, (sensitivity + specificity) / 2, precision, F1, sensitivity, specificity, ROC AUC.
TABLE_7: Final[Mapping[BackboneName, tuple[float, ...]]] = {
    "MobileNetV2": (0.81, 0.86, 0.71, 0.75, 0.78, 0.95, 0.96),
    "MobileNetV3Small": (0.78, 0.87, 0.63, 0.70, 0.79, 0.95, 0.95),
    "MobileNetV3Large": (0.84, 0.87, 0.75, 0.79, 0.80, 0.95, 0.96),
    "NASNetMobile": (0.86, 0.88, 0.73, 0.78, 0.81, 0.96, 0.97),
}

#: Accuracy of MobileNetV3Large, by the names of `model.architectures.TABLE_8`.
TABLE_8: Final[Mapping[str, float]] = {
    "[:270]": 0.71,
    "[:266]": 0.73,
    "[:260]": 0.77,
    "[:251]": 0.79,
    "[:246]": 0.84,
    "[:246] + Dense(512)": 0.85,
    "[:240]": 0.86,
    "[:230]": 0.84,
    "[:230] without metadata": 0.85,
    "plain": 0.85,
}

#: The optimised MobileNetV3Large: accuracy, precision, F1, sensitivity, specificity, ROC AUC.
TABLE_9: Final = (0.86, 0.86, 0.86, 0.86, 0.95, 0.98)

#: Parameters in millions, depth, accuracy, seconds of an epoch of training.
TABLE_10: Final[Mapping[BackboneName, tuple[float, int, float, float]]] = {
    "MobileNetV3Large": (5.5, 118, 0.86, 116),
    "DenseNet201": (20.2, 402, 0.89, 1000),
    "InceptionResNetV2": (55.9, 449, 0.90, 3500),
}

_REPEATED: Final = (
    "The paper's F1 rows of MobileNetV2, MobileNetV3Small, MobileNetV3Large, NASNetLarge and NASNetMobile have nv's "
    "figure again as vasc's, and that of MobileNetV3Large is its recall row."
)

#: What is known to be wrong or unsaid in the paper, by table.
FAULTS: Final[Mapping[int, tuple[str, ...]]] = {
    2: (
        "The parameters are those of the ImageNet networks with their classifier, without soft attention.",
        (
            "Depth is the number of layers with weights; the paper's 118 of MobileNetV3Large and 308 of NASNetMobile "
            "are no count of ours."
        ),
        "MobileNet stands in this table alone: the paper has no result of it.",
    ),
    4: ("The paper has .89 for InceptionResNetV2 here, and .90 in its abstract and in Table 10.",),
    5: (
        "The paper's equation for F1 has TN in it, which its own figures do not use; ours is 2TP / (2TP + FP + FN).",
        _REPEATED,
        "With metadata, the paper has .81 as InceptionResNetV2's mean; its seven figures give .78.",
    ),
    7: (
        (
            "What the paper calls balanced accuracy is (sensitivity + specificity) / 2, averaged over the classes; the "
            "mean recall, ISIC's balanced accuracy, is the column sensitivity."
        ),
    ),
    8: ("The maps of [:230], [:251], [:266] and [:270] are 1x1: attention is a constant there, and is not tested.",),
    9: ("Precision, F1 and sensitivity are weighted by the images of each class, so that sensitivity is accuracy.",),
    10: (
        "What the paper calls time of prediction is the training time of an epoch, on its hardware.",
        "The paper has .90 for InceptionResNetV2 here, and .89 in Table 4.",
    ),
}
