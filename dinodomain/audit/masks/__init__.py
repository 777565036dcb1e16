"""Which parts of an image no model should need: from validity, geometry and brightness (``regions.py``) and from text (``ocr.py``)."""
