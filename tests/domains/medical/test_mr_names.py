from __future__ import annotations

import pytest

from dinodomain_medical import mri
from dinodomain_medical.mr_names import B_CLASSES, MR_CHANNELS, b_class, b_value_in, mr_channel


@pytest.mark.parametrize(
    ("text", "channel"),
    [
        ("IXI013-HH-1212_T1w", "T1"),
        ("sub-01_ses-2_T1w", "T1"),
        ("Subj1_FLAIR", "FLAIR"),
        ("t2_flair_tra", "FLAIR"),
        ("t2_tirm_tra_dark-fluid", "FLAIR"),
        ("t2_spc_da-fl_sag", "FLAIR"),
        ("t1_mpr_ns_sag", "T1"),
        ("TCGA_DU_5854_t1post", "T1c"),
        ("TCGA_DU_5854_t1pre", "T1"),
        ("sag T1 post contrast", "T1c"),
        ("sub-01_ce-gadolinium_T1w", "T1c"),
        ("T1 without contrast", "T1"),
        ("T1 VIBE arterial phase post", "T1c"),
        ("AX T2 TSE", "T2"),
        ("dwi_b1000", "DWI-b1000"),
        ("ep2d_diff_b1000_trace", "DWI-b1000"),
        ("dwi_b0", "DWI-b0"),
        ("dwi_b0_b1000", "DWI"),
        ("sub-01_dwi", "DWI"),
        ("dwi_ADC", "ADC"),
        # what is no T1, T2 or FLAIR although it says so
        ("T1_T2_map", "mr"),
        ("T1_map", "mr"),
        ("T1_FLAIR", "mr"),
        ("t2star", "mr"),
        ("T2*", "mr"),
        ("t2_star_gre", "mr"),
        ("sub-01_T2starw", "mr"),
        ("PD_T2_TSE_dual", "mr"),
        ("T2 SWI", "mr"),
        ("TOF MRA T1", "mr"),
        ("t2_tirm_cor", "mr"),
        ("T2 STIR sag", "mr"),
        ("T1_rho", "mr"),
        ("T1 subtraction", "mr"),
        ("T1 MIP", "mr"),
        ("T2 perfusion dsc", "mr"),
        ("dti_FA", "mr"),
        ("dwi_eadc", "mr"),
        ("b0_map", "mr"),
        ("b1_fieldmap", "mr"),
        ("brain1_image", "mr"),
        ("Doe Jane 1980", "mr"),
        ("", "mr"),
    ],
)
def test_whole_words_name_a_channel_and_contradictions_name_none(text, channel):
    assert mr_channel(text) == channel
    assert channel in MR_CHANNELS


def test_the_domain_declares_every_name_that_can_be_given():
    assert set(mri.channels) == set(MR_CHANNELS)
    assert {b_class(float(b)) for b in range(0, 20000, 10)} <= set(MR_CHANNELS)


@pytest.mark.parametrize(
    ("b", "channel"),
    [(0, 0), (10, 0), (11, 100), (50, 100), (300, 100), (301, 500), (750, 500), (751, 1000), (1250, 1000), (1251, 1500), (9000, 3000)],
)
def test_a_b_value_belongs_to_the_nearest_class(b, channel):
    assert b_class(b) == f"DWI-b{channel}"
    assert channel in B_CLASSES


def test_a_stated_b_value_outranks_the_text_but_not_a_derived_map():
    assert mr_channel("T2 tra", b_value=800.0) == "DWI-b1000"
    assert mr_channel("", b_value=0.0) == "mr"  # GE states 0 in series that are no diffusion
    assert mr_channel("ep2d_diff", b_value=0.0) == "DWI-b0"
    assert mr_channel("ep2d_diff_b1000 ADC", b_value=1000.0) == "ADC"
    assert mr_channel("dti FA", b_value=1000.0) == "mr"


def test_a_term_of_the_header_names_what_the_text_does_not():
    assert mr_channel("sag brain", term="FLUID_ATTENUATED") == "FLAIR"
    assert mr_channel("T2 sag", term="T1") == "T2"
    assert mr_channel("", term="PROTON_DENSITY") == mr_channel("", term="T2_STAR") == "mr"
    assert mr_channel("T1 T2", term="T1") == mr_channel("perfusion", term="T2") == "mr"


def test_a_contrast_agent_makes_a_t1_a_t1c_and_leaves_others():
    assert mr_channel("T1 tse", contrast_agent=True) == "T1c"
    assert mr_channel("T1 nativ", contrast_agent=True) == "T1"
    assert mr_channel("T2 tse", contrast_agent=True) == "T2"
    assert mr_channel("sag", contrast_agent=True, term="T1") == "T1c"


def test_a_b_value_is_read_from_text_only_where_it_is_the_only_one():
    assert b_value_in("ep2d_b1000_tra") == 1000.0
    assert b_value_in("b0_b500") is None
    assert b_value_in("tumb1000") is None
