"""Medical domains of dinodomain: computed tomography, magnetic resonance and radiographs.

| file | what it holds |
|---|---|
| ``volumes.py`` | the domains ``ct`` and ``mri``: volumes from NIfTI, NRRD, MHA and DICOM series |
| ``radiographs.py`` | the domain ``xray``: single DICOM frames and greyscale PNG, JPEG, TIFF |
| ``modalities.py`` | what each domain declares: channels, header filter, augmentation policy, probes |
| ``policies.py`` | augmentation policies and display windows |
| ``mr_names.py`` | the vocabulary that names an MR channel |
| ``discovery.py`` | where sources come from: folder, file, archive or server; having them at hand when they are read |
| ``sources.py`` | selection, label maps, keys, digests, what a domain does with what is found |
| ``walking.py``, ``gathering.py`` | walking a folder; joining the files of a series wherever they lie |
| ``reading_ahead.py`` | headers of many files, read by worker processes |
| ``dicomweb.py``, ``dicomweb_http.py`` | series of a DICOMweb server; credentials, rate, retries |
| ``archives.py``, ``dicomdir.py`` | zip and tar archives, unpacked once; inventories of exchange media |
| ``geometry.py`` | affines, closest canonical orientation, spacing |
| ``values.py`` | stored number types, one scale for many slices, the Hounsfield check |
| ``opened.py`` | from an array in memory to a Record |
| ``nifti.py``, ``itk.py``, ``images.py`` | readers of one file |
| ``volume_files.py`` | NIfTI, NRRD and MHA files as sources, and the frames of 4-D ones |
| ``stacking.py``, ``stack_grid.py`` | which volumes of one frame of reference belong together; bringing them to one grid |
| ``projection.py``, ``voi.py``, ``luts.py``, ``shutters.py`` | a CR or DX frame; VOI LUT or window; tables; shutters as masks |
| ``dicom_header.py``, ``dicom_values.py``, ``dicom_fields.py`` | a DICOM header; its values as types; the fields that may enter a store |
| ``quick_header.py``, ``multiframe.py`` | a header without a full parse; the frames of enhanced objects |
| ``selection.py`` | the header filter, one reconstruction per acquisition |
| ``series_split.py``, ``series_geometry.py``, ``resample_series.py`` | telling volumes apart; slices to a grid; straightening it |
| ``dicom_pixels.py``, ``dicom_series.py``, ``series_source.py`` | stored values; slices to a volume; identity, digest and facts of it |

Nothing here imports torch. pydicom, nibabel and SimpleITK are imported at the point of use (extra ``medical``).
"""

from dinodomain_medical.modalities import CT, MRI, XRAY
from dinodomain_medical.radiographs import RadiographDomain
from dinodomain_medical.sources import DEFAULT_EXCLUDE
from dinodomain_medical.volumes import VolumeDomain

ct = VolumeDomain(modality=CT)
mri = VolumeDomain(modality=MRI)
xray = RadiographDomain(modality=XRAY)

__all__ = ["DEFAULT_EXCLUDE", "RadiographDomain", "VolumeDomain", "ct", "mri", "xray"]
