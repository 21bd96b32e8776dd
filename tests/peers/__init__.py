"""Small PyTorch models with published parameter names, to test against; imported only where torch is there."""
