"""Fixtures shared by all tests; each comes from the module named after what it starts."""

import os

# The tests' own plain channels and requests are no concern of a company's proxy.
os.environ["no_proxy"] = f"127.0.0.1,localhost,{os.environ.get('no_proxy', '')}"

pytest_plugins = (
    "tests.fixtures.clip",
    "tests.fixtures.command",
    "tests.fixtures.packages",
    "tests.fixtures.redis",
    "tests.fixtures.service",
    "tests.fixtures.calls",
    "tests.fixtures.stack",
)
