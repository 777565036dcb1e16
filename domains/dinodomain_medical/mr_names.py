"""The vocabulary that names an MR channel: T1, T1c, T2, FLAIR, DWI-b0 ... DWI-b3000, DWI, ADC, else ``mr``.

A name comes from whole words of a file name or series description, from the defined terms of a header (AcquisitionContrast,
ImageType) and from a stated b-value; the words themselves never leave this file, so no free text reaches a store. Words that
contradict each other (T1 and T2), and words that make something else of a weighting (T2*, a T1 map, proton density, angiography,
susceptibility, perfusion, projections), name nothing: the channel is ``mr``, never a guess. Echo and repetition times are not
interpreted: the same pair is T1-weighted at one field strength and proton-density-weighted at another, or with another flip angle.

Diffusion images of different b-value are different pictures of the same tissue, so each is a channel of its own; b-values that
protocols choose freely fall into the nearest of a few classes (``B_CLASSES``), and the exact one is kept in the field ``b_value``.
"""

from __future__ import annotations

import re

B_CLASSES = (0, 100, 500, 1000, 1500, 2000, 3000)
"""s/mm2; a b-value belongs to the nearest class (the smaller of two), but only b <= 10 to b0: with more, flow is already dark."""

_B_ZERO = 10.0
_NAMED = ("T1", "T1c", "T2", "FLAIR", "ADC")
MR_CHANNELS = (*_NAMED, "DWI", *(f"DWI-b{value}" for value in B_CLASSES), "mr")
"""Every name that ``mr_channel`` gives."""

_WORDS = {
    "T1": ("t1", "t1w", "t1wi", "t1n", "t1pre", "mprage", "spgr", "bravo"),
    "T1c": ("t1c", "t1ce", "t1gd", "t1post", "t1km", "t1contrast"),
    "T2": ("t2", "t2w", "t2wi"),
    "FLAIR": ("flair", "t2flair", "t2f"),
    "DWI": ("dwi", "diff", "diffusion", "trace", "tracew"),
    "ADC": ("adc",),
}
_CHANNEL_OF = {word: channel for channel, words in _WORDS.items() for word in words}
_CONTRAST_WORDS = frozenset({"gd", "gad", "post", "postcontrast", "ce", "km", "contrast", "gadolinium", "gadovist", "dotarem", "enhanced"})
_NO_CONTRAST = frozenset({"pre", "precontrast", "without", "wo", "ohne", "non", "no", "native", "nativ"})
_DARK_FLUID = ({"dark", "fluid"}, {"da", "fl"}, {"darkfluid"})  # Siemens says so where others say FLAIR

# With one of these words beside it, T1 or T2 is no weighting of an ordinary picture.
_OTHERWISE = frozenset(
    {
        *("pd", "pdw", "proton", "density"),
        *("swi", "swan", "venobold", "qsm", "star", "t2star", "t2starw", "t2*", "t2*w", "t2s"),
        *("mra", "tof", "angio", "cemra", "mrv", "mip", "minip"),
        *("map", "maps", "mapping", "molli", "shmolli", "rho", "relaxometry", "mtr", "mt"),
        *("bold", "fmri", "asl", "pcasl", "dsc", "dce", "perf", "perfusion", "cbf", "cbv", "mtt", "ttp"),
        *("stir", "tirm", "subtraction", "subtr", "localizer", "scout", "survey", "spectroscopy", "csi"),
    }
)
# With one of these, a diffusion series is a map made from it and no picture of one b-value.
_NO_DIFFUSION = frozenset({"fa", "colfa", "md", "rd", "eadc", "exponential", "tensor", "tractography", "kurtosis"})
_B_VALUE = re.compile(r"b(\d{1,4})")
_SPLIT = re.compile(r"[^a-z0-9*]+")
# A channel may be said together with weaker words: a FLAIR is T2-weighted, an ADC map is made from diffusion images.
_IMPLIED = {"FLAIR": {"T2"}, "ADC": {"DWI"}, "T1c": {"T1"}}

# Words of ImageType that leave the weighting as it is: diffusion maps with a channel of their own, Dixon images but fat, reformats.
_SAME_PICTURE = frozenset(
    {"ADC", "TRACEW", "W", "WATER", "IP", "IN_PHASE", "OP", "OUT_PHASE", "MPR", "CURVED_MPR", "REFORMATTED", "AVERAGE"}
)

_TERMS = {"T1": "T1", "T2": "T2", "FLUID_ATTENUATED": "FLAIR", "DIFFUSION": "DWI"}
"""AcquisitionContrast (0008,9209) of enhanced MR, PS3.3 C.8.13.3.1.1; its other terms name no channel of ours."""


def b_class(b_value: float) -> str:
    """Channel of a diffusion image: ``DWI-b1000`` for b from 751 to 1250 s/mm2."""
    if b_value <= _B_ZERO:
        return "DWI-b0"
    return f"DWI-b{min(B_CLASSES[1:], key=lambda known: abs(known - b_value))}"


def b_value_in(text: str) -> float | None:
    """The b-value that a file name or description states (``b1000``); None where there is none or several."""
    values = {float(match[1]) for word in _words(text) if (match := _B_VALUE.fullmatch(word))}
    return values.pop() if len(values) == 1 else None


def mr_channel(text: str, *, contrast_agent: bool = False, b_value: float | None = None, term: str = "") -> str:
    """Names the channel of an MR image.

    Args:
        text: File stem or series description.
        contrast_agent: Whether the header says that contrast agent was given.
        b_value: b-value of the header in s/mm2, or None.
        term: AcquisitionContrast of the header, used only where the text names nothing.

    Returns:
        One of ``MR_CHANNELS``.
    """
    words = _words(text)
    found = _found(words)
    if not found and term.upper() in _TERMS and not words & (_OTHERWISE | _NO_DIFFUSION):
        found = {_TERMS[term.upper()]}
    if found == {"T1"} and (contrast_agent or words & _CONTRAST_WORDS) and not words & _NO_CONTRAST:
        found = {"T1c"}
    if b_value is not None and b_value > _B_ZERO and "ADC" not in found:
        return "mr" if words & _NO_DIFFUSION else b_class(b_value)
    if found == {"DWI"}:
        return _diffusion(words, text, b_value)
    return found.pop() if len(found) == 1 else "mr"


def dicom_channel(description: str, *, kind: str, component: str, contrast_agent: bool, b_value: float | None, term: str) -> str:
    """The same for a DICOM series.

    Args:
        description: SeriesDescription or ProtocolName.
        kind: Words of ImageType that make another picture of the series (``ADC``, ``MIP``, ``FAT``), joined by ``+``.
        component: ``P``, ``R`` or ``I`` where its values are phases, real or imaginary parts.
        contrast_agent: See ``mr_channel``.
        b_value: See ``mr_channel``.
        term: See ``mr_channel``.
    """
    words = set(kind.split("+")) - {""}
    if component in ("P", "R", "I") or not words <= _SAME_PICTURE:
        return "mr"
    return mr_channel(f"{description} {' '.join(sorted(words))}", contrast_agent=contrast_agent, b_value=b_value, term=term)


def _words(text: str) -> set[str]:
    return set(_SPLIT.split(text.lower())) - {""}


def _found(words: set[str]) -> set[str]:
    found = {_CHANNEL_OF[word] for word in words & _CHANNEL_OF.keys()}
    if any(parts <= words for parts in _DARK_FLUID):
        found.add("FLAIR")
        words = words - {"tirm"}  # "tirm" alone is a STIR as often
    if any(match and int(match[1]) >= 50 for match in map(_B_VALUE.fullmatch, words)):  # "b0" and "b1" alone are field maps
        found.add("DWI")
    for channel, weaker in _IMPLIED.items():
        if channel in found:
            found -= weaker
    if words & _OTHERWISE and found & {"T1", "T1c", "T2", "FLAIR"}:
        return {"T1", "T2"}  # contradictory on purpose: names nothing, and no header term overrules it
    return found


def _diffusion(words: set[str], text: str, b_value: float | None) -> str:
    if words & _NO_DIFFUSION:
        return "mr"
    stated = b_value_in(text) if b_value is None else b_value
    return "DWI" if stated is None else b_class(stated)
