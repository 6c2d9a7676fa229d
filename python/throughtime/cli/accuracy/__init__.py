"""`throughtime accuracy`: rounding errors of the functions and kernels of each instruction set of this machine."""
