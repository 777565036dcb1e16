"""Which changes keep the meaning of a scan: view policies and display windows. Data only.

Axes are anatomical. After canonical re-orientation array axes z, y, x run towards superior, anterior and right, so they are ``IS``,
``AP``, ``LR``; a radiograph has rows from head to foot and columns across the patient. No axis is ever flipped: left for right exchanges
the sides of heart and liver (situs inversus is a finding), and no scan is taken upside down. Quarter turns are left out for the same
reasons. A patient lies a few degrees off the axes, and a policy may say so (``views.policy.rotation={degrees: [-10, 10]}``); it is off
because it costs a second resampling.
"""

from __future__ import annotations

from dinodomain.domain import BiasField, Blur, DisplayWindow, Gain, Gamma, Jitter, Noise, Rician, Thickness, ValueNoise, ViewPolicy, Window

VOLUME_AXES = ("IS", "AP", "LR")

_SOFT = Blur(probability=(0.5, 0.1, 0.3), sigma=(0.1, 1.0))
"""Half of what is usual for photographs: fine texture (trabeculae, ground glass, interstitium) carries findings."""

CT_WINDOWS = {
    "lung": DisplayWindow(centre=-600.0, width=1500.0, mean=0.592, std=0.319),
    "soft_tissue": DisplayWindow(centre=40.0, width=400.0, mean=0.226, std=0.304),
    "bone": DisplayWindow(centre=480.0, width=2500.0, mean=0.165, std=0.171),
    "brain": DisplayWindow(centre=40.0, width=80.0, mean=0.202, std=0.365),
}
"""Centres and widths are the presets of the OHIF viewer (docs.ohif.org, ``defaultWindowLevelPresets``); that of the brain is Radiopaedia's
too ("Windowing (CT)"). Mean and deviation in the unit range were measured on the four CT scans of the project's test data (two of the
chest, two of the abdomen, each with the same weight; no head among them, which the brain window would fill more evenly)."""

CT_POLICY = ViewPolicy(
    axes=VOLUME_AXES,
    blur=_SOFT,  # a softer reconstruction kernel
    thickness=Thickness(probability=0.3, axis="IS", mm=(1.0, 5.0)),  # thin 1 mm to routine 5 mm slices
    gain=Gain(probability=0.5, gain=(0.97, 1.03), offset=(-7.0, 7.0)),
    window=Window(probability=0.8, centre=(-0.01, 0.01), width=(0.98, 1.02)),
    jitter=None,
    gamma=None,
    value_noise=ValueNoise(probability=0.3, std=(0.0, 40.0)),
    noise=None,
    default_mode="domain",
)
"""Hounsfield units are calibrated, so nothing here takes one tissue for another; no gamma, no brightness, no contrast.

Gain turns about 0 HU, water, which is what a scanner is calibrated on: water reads within 7 HU and Teflon within 6 % (The Phantom
Laboratory, Catphan manual, sensitometry). The window moves by at most 0.01 of the 4,095 HU (41 HU) and 2 % of the width (21 HU at water):
together less than half of the way from fat (-100 HU) to muscle (50 HU). Of a display window it is 0.01 of that width; where windows are
inputs, readers' habits allow more (``configs/views/ct_windows.yaml``). Noise reaches 40 HU, what a sharp kernel or a low dose leaves;
it is added to the values, so that all display windows show the same grain."""

MRI_POLICY = ViewPolicy(
    axes=VOLUME_AXES,
    blur=_SOFT,
    thickness=Thickness(probability=0.3, axis="IS", mm=(1.0, 6.0)),  # 1 mm isotropic to 5 mm slices with a gap
    bias_field=BiasField(probability=0.3, strength=(0.03, 0.2)),
    rician=Rician(probability=0.3, std=(0.0, 0.04)),
    jitter=Jitter(brightness=(-0.15, 0.15), contrast=(0.7, 1.3)),
    gamma=Gamma(exponent=(0.7, 1.5)),
    noise=None,
    default_mode="source",
)
"""MR intensities are arbitrary per scan, and differ by coil, sequence and field strength: wide ranges, normalised by each source.

The 20 % and 40 % fields of BrainWeb (brainweb.bic.mni.mcgill.ca) span 0.9..1.1 and 0.8..1.2, deviations of about 0.05 and 0.1 of the
logarithm; surface coils have twice that. Noise is Rician, not Gaussian: a magnitude has none below zero (Gudbjartsson and Patz 1995,
doi:10.1002/mrm.1910340618); 0.04 of the range is about 5 % of white matter in a T1 image, where BrainWeb has 1 to 9 %. ADC maps are no
magnitudes but are never negative either, and there it is no more than noise. For stores of phase, real or imaginary parts, which are
signed, it does nothing: channels whose own range reaches below zero are left alone."""

XRAY_POLICY = ViewPolicy(
    axes=("IS", "LR"),
    blur=_SOFT,
    jitter=Jitter(brightness=(-0.15, 0.15), contrast=(0.7, 1.3)),  # 0.2 whitens local crops of the abdomen
    gamma=Gamma(exponent=(0.7, 1.5)),
    noise=Noise(std=(0.0, 0.03), shot=(0.0, 0.02)),  # more hides the texture of the lung
    default_mode="source",
)
"""Detector, exposure and the vendor's look-up table change grey values at will, monotonically: brightness, contrast, gamma. Quanta are
few, so a part of the noise grows with the signal."""
