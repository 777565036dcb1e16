"""The vocabulary that names an MR channel: T1, T1c, T2, FLAIR, DWI, ADC, else ``mr``.

A name comes from whole words of a file name or series description; the words themselves never leave this file, so no free
text reaches a store. Words that contradict each other (T1 and T2) name nothing: the channel is ``mr``, never a guess.
"""

from __future__ import annotations

import re

_WORDS = {
    "T1": ("t1", "t1w", "t1wi", "t1n", "t1pre", "mprage", "spgr", "bravo"),
    "T1c": ("t1c", "t1ce", "t1gd", "t1post", "t1km", "t1contrast"),
    "T2": ("t2", "t2w", "t2wi"),
    "FLAIR": ("flair", "t2flair", "tirm"),
    "DWI": ("dwi", "trace", "tracew"),
    "ADC": ("adc",),
}
_CHANNEL_OF = {word: channel for channel, words in _WORDS.items() for word in words}
_CONTRAST_WORDS = frozenset({"gd", "gad", "post", "postcontrast", "ce", "km", "contrast"})
_B_VALUE = re.compile(r"b\d{2,4}")
# A channel may be said together with weaker words: a FLAIR is T2-weighted, an ADC map is made from diffusion images.
_IMPLIED = {"FLAIR": {"T2"}, "ADC": {"DWI"}, "T1c": {"T1"}}


def mr_channel(text: str, *, contrast_agent: bool = False) -> str:
    """Names the channel of an MR image.

    Args:
        text: File stem or series description.
        contrast_agent: Whether the header says that contrast agent was given.

    Returns:
        One of ``T1``, ``T1c``, ``T2``, ``FLAIR``, ``DWI``, ``ADC``, ``mr``.
    """
    words = set(re.split(r"[^a-z0-9*]+", text.lower())) - {""}
    found = {_CHANNEL_OF[word] for word in words & _CHANNEL_OF.keys()}
    if any(_B_VALUE.fullmatch(word) and word not in ("b0", "b00") for word in words):
        found.add("DWI")
    for channel, weaker in _IMPLIED.items():
        if channel in found:
            found -= weaker
    if found == {"T1"} and (contrast_agent or words & _CONTRAST_WORDS) and "pre" not in words:
        return "T1c"
    return found.pop() if len(found) == 1 else "mr"
