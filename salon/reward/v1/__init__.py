"""Stubs generated from protos/salon/reward/v1/reward.proto; `make protos` makes them anew."""
