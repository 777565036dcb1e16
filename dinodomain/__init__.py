"""dinodomain: pretrain, fine-tune, audit and export DINO-family backbones on your own scans and scenes."""

__version__ = "0.1.0"
