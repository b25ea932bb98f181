"""The samples of all calls on their way to a reward: decoded, batched, isolated, cached."""
