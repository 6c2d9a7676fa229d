"""`throughtime bench --step`: whole training steps of small models, in the order in which a program runs them."""
