"""Writers of the embedded synthetic corpus in the owners formats, one module each."""
