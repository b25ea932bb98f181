"""The local stack: Redis, services and workers as processes of this host."""
