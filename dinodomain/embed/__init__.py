"""A frozen backbone over a store gives features on disk, keyed by content, so that probes and audits need no encoder."""
