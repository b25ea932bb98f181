"""The jury: reward models, one file each, behind one gRPC server that hosts any of them."""
