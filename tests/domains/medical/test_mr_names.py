from __future__ import annotations

import pytest

from dinodomain_medical.modalities import MR_CHANNELS
from dinodomain_medical.mr_names import mr_channel


@pytest.mark.parametrize(
    ("text", "channel"),
    [
        ("IXI013-HH-1212_T1w", "T1"),
        ("Subj1_FLAIR", "FLAIR"),
        ("t2_flair_tra", "FLAIR"),
        ("TCGA_DU_5854_t1post", "T1c"),
        ("TCGA_DU_5854_t1pre", "T1"),
        ("sag T1 post contrast", "T1c"),
        ("AX T2 TSE", "T2"),
        ("dwi_b1000", "DWI"),
        ("ep2d_diff_b1000_trace", "DWI"),
        ("dwi_ADC", "ADC"),
        ("T1_T2_map", "mr"),
        ("t2star", "mr"),
        ("T2*", "mr"),
        ("brain1_image", "mr"),
        ("Doe Jane 1980", "mr"),
        ("", "mr"),
    ],
)
def test_whole_words_name_a_channel_and_contradictions_name_none(text, channel):
    assert mr_channel(text) == channel
    assert channel in MR_CHANNELS


def test_a_contrast_agent_makes_a_t1_a_t1c_and_leaves_others():
    assert mr_channel("T1 tse", contrast_agent=True) == "T1c"
    assert mr_channel("T2 tse", contrast_agent=True) == "T2"
