"""`throughtime bench --device cuda`: recurrences and Add + LayerNorm on a GPU, against cuDNN and torch."""
