"""What fits in memory."""

RESIDENT_BYTES = 2 * 2**30
"""A torch Dataset or a folder of images up to this size is read once and kept; a larger one is streamed."""
