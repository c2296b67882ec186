"""Fixtures. Scratch folders are removed as soon as a test ends: some outputs are large."""

import pathlib
import tempfile

import pytest

import harness  # puts tests/cli on the path

assert harness.runner


@pytest.fixture
def scratch():
    with tempfile.TemporaryDirectory(prefix="mgr-interop-") as folder:
        yield pathlib.Path(folder)


@pytest.fixture(scope="module")
def module_scratch():
    with tempfile.TemporaryDirectory(prefix="mgr-interop-") as folder:
        yield pathlib.Path(folder)
