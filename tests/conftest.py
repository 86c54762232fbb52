"""Every test runs on two virtual CPU devices, with exact float32 products and without anything left in flight."""

import os
import shutil
import tempfile
from pathlib import Path

# Before anything imports JAX, and inherited by the subprocesses of tests.
os.environ["JAX_PLATFORMS"] = "cpu"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
CACHE = tempfile.mkdtemp(prefix="jaxgan-tests-")
os.environ["JAXGAN_CACHE"] = CACHE

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_platforms", "cpu")  # a plugin may have imported JAX already
jax.config.update("jax_default_matmul_precision", "highest")
# Unblocked calls with collectives can hang on two cores.
jax.config.update("jax_cpu_enable_async_dispatch", False)

# The same examples in every run, and no limit on the time of one that compiles.
hypothesis.settings.register_profile("jaxgan", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("jaxgan")


def pytest_unconfigure(config):
    shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of original data files that a machine keeps for tests: $JAXGAN_TEST_DATA."""
    folder = os.environ.get("JAXGAN_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("JAXGAN_TEST_DATA names no folder")
    return Path(folder)
