"""`FlowMonitor`: the gradient flow of recurrent layers while they are trained."""
