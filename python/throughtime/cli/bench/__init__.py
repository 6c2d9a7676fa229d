"""`throughtime bench`: training steps of this library and of installed frameworks, interleaved in one process."""
