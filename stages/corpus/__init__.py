"""Writers of the embedded corpus: synthetic stand-ins in the data owners' formats."""
