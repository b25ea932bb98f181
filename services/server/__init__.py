"""The gRPC servers: who may call, what is let in, how they start and drain."""
