"""Methods applied to videos, frame by frame."""
