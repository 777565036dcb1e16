"""What each medical domain declares: channels, header filter, augmentation policy (``policies``), probes. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dinodomain.domain import Channel, ProbeSpec, ViewPolicy
from dinodomain_medical.mr_names import MR_CHANNELS
from dinodomain_medical.policies import CT_POLICY, CT_WINDOWS, MRI_POLICY, XRAY_POLICY


@dataclass(frozen=True, slots=True, kw_only=True)
class Modality:
    """One medical domain as data.

    Attributes:
        name: Entry-point name of the domain.
        dicom: Values of DICOM Modality (0008,0060) that belong to it.
        channels: Known channels by name.
        policy: Augmentations that keep the meaning of its images.
        probes: Probes worth running when the labels are there.
        hounsfield: Whether values must be Hounsfield units.
        select: Header filter used unless ``ingest.select`` is given.
    """

    name: str
    dicom: tuple[str, ...]
    channels: Mapping[str, Channel]
    policy: ViewPolicy
    probes: tuple[ProbeSpec, ...]
    hounsfield: bool = False
    select: str = ""


_PHANTOM = "phantom|catphan|quality.?(assurance|control)"
_NO_PHANTOM = (
    " and ".join(
        f"not matches(lower({name}), '{words}')"
        for name, words in (
            ("PatientName", rf"{_PHANTOM}|^q[ac]([^a-z]|$)"),
            ("PatientID", rf"{_PHANTOM}|^q[ac]([^a-z]|$)"),
            ("StudyDescription", rf"{_PHANTOM}|(^|[^a-z])q[ac]([^a-z]|$)"),
            ("ProtocolName", rf"{_PHANTOM}|(^|[^a-z])q[ac]([^a-z]|$)"),
        )
    )
    + " and QualityControlImage != 'YES'"
)

_NO_CAPTURES = (
    "'SECONDARY' not in ImageType and 'LOCALIZER' not in ImageType and 'SCREEN SAVE' not in ImageType"
    " and not matches(SOPClassUID, '^1[.]2[.]840[.]10008[.]5[.]1[.]4[.]1[.]1[.]7')"
)

# What scanners compute from the acquisition itself and readers use as images of their own: diffusion maps and Dixon parts. Other
# DERIVED images (projections, reformats, subtractions, perfusion and parametric maps) repeat or recolour what is there already.
_MR_MAPS = "'ADC' in ImageType or 'TRACEW' in ImageType or 'DIXON' in ImageType"

CT_SELECT = f"Modality == 'CT' and 'DERIVED' not in ImageType and {_NO_CAPTURES} and {_NO_PHANTOM}"
"""Original and primary; no localizer, secondary capture, dose report or phantom. A header without ImageType is taken."""

MRI_SELECT = f"Modality == 'MR' and ('DERIVED' not in ImageType or {_MR_MAPS}) and {_NO_CAPTURES} and {_NO_PHANTOM}"
"""The same, with ADC and trace-weighted diffusion maps and Dixon water, fat and phase images, which are DERIVED."""

XRAY_SELECT = (
    "Modality in ['CR', 'DX'] and PresentationIntentType != 'FOR PROCESSING'"
    " and not matches(SOPClassUID, '^1[.]2[.]840[.]10008[.]5[.]1[.]4[.]1[.]1[.]1[.]1[.]1$') and BurnedInAnnotation != 'YES'"
    f" and {_NO_CAPTURES} and {_NO_PHANTOM}"
)
"""Pictures for presentation: archives hold most exposures twice, and raw detector data is another quantity. No secondary capture or
phantom, and none whose header says that a person's name is burned into the pixels. DERIVED is taken: processing for display is that."""


CT = Modality(
    name="ct",
    dicom=("CT",),
    select=CT_SELECT,
    # -1024..3071 is the range of a 12-bit scanner; mean and std were measured on chest and abdomen scans.
    channels={"ct": Channel(unit="HU", low=-1024.0, high=3071.0, mean=0.15, std=0.12, windows=CT_WINDOWS)},
    policy=CT_POLICY,
    probes=(
        ProbeSpec(
            name="nodule malignancy",
            task="classify",
            target="malignant",
            metric="auc",
            unit="patient",
            source="LIDC-IDRI, doi:10.1118/1.3528204",
        ),
        ProbeSpec(
            name="intracranial haemorrhage",
            task="classify",
            target="haemorrhage",
            metric="auc",
            unit="patient",
            source="RSNA 2019 ICH Detection, doi:10.1148/ryai.2020190211",
        ),
        ProbeSpec(
            name="organs",
            task="segment",
            target="organs",
            metric="dice",
            unit="patient",
            source="TotalSegmentator, doi:10.1148/ryai.230024",
        ),
    ),
    hounsfield=True,
)

# Declared ranges of MR and radiographs are the 12-bit scale of most devices; they matter only for `views.normalise=domain`.
_ARBITRARY = Channel(unit="1", low=0.0, high=4095.0)

MRI = Modality(
    name="mri",
    dicom=("MR",),
    select=MRI_SELECT,
    channels=dict.fromkeys(MR_CHANNELS, _ARBITRARY),
    policy=MRI_POLICY,
    probes=(
        ProbeSpec(
            name="brain age",
            task="regress",
            target="age",
            metric="mae",
            unit="patient",
            source="IXI, https://brain-development.org/ixi-dataset/",
        ),
        ProbeSpec(
            name="sex",
            task="classify",
            target="sex",
            metric="auc",
            unit="patient",
            source="IXI, https://brain-development.org/ixi-dataset/",
        ),
        ProbeSpec(
            name="glioma", task="segment", target="tumour", metric="dice", unit="patient", source="BraTS, doi:10.1109/TMI.2014.2377694"
        ),
    ),
)

XRAY = Modality(
    name="xray",
    dicom=("CR", "DX"),
    select=XRAY_SELECT,
    channels={"xray": _ARBITRARY},
    policy=XRAY_POLICY,
    probes=(
        ProbeSpec(
            name="thorax findings",
            task="classify",
            target="finding",
            metric="auc",
            unit="patient",
            source="ChestX-ray14, doi:10.1109/CVPR.2017.369",
        ),
        ProbeSpec(
            name="pneumonia",
            task="classify",
            target="pneumonia",
            metric="auc",
            unit="patient",
            source="RSNA Pneumonia Detection, doi:10.1148/ryai.2019180041",
        ),
        ProbeSpec(
            name="sex", task="classify", target="sex", metric="auc", unit="patient", source="CheXpert, doi:10.1609/aaai.v33i01.3301590"
        ),
    ),
)
