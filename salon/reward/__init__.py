"""The wire contract's Python stubs, one package a version."""
