"""`throughtime bench`: training steps of this library and of the frameworks installed, in turn in one process."""
